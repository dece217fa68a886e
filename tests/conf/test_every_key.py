"""Every key of conf can be overridden, alone or with others, in every script."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from _pytest.mark.structures import ParameterSet
from hydra import compose
from omegaconf import OmegaConf

from sparse_dset.command_line import check_command_line
from sparse_dset.composition import leaves
from sparse_dset.config import compose_config, config_dir, hydra_of_conf, options

_DOTTED_ARM = re.compile(r"arms\.\w+\.\d")
"""Hydra takes the dot for the end of a name: such an arm is overridden with arms={...}."""

ROOT = "data.root=/pictures (1)"
SCRIPTS = sorted(path.stem for path in config_dir().glob("*.yaml") if path.stem != "detector")


def _choices(name: str) -> list[list[str]]:
    """The script as it is, and with each option of each of its groups."""
    groups = [
        group
        for entry in OmegaConf.load(config_dir() / f"{name}.yaml").get("defaults", [])
        if not isinstance(entry, str)
        for group in entry
        if group in options()
    ]
    chosen = [f"{group}={option}" for group in groups for option in options()[group]]
    if name != "train":  # where the same groups are tried with every option
        chosen = [one for one in chosen if one.startswith(("data=", "ablation="))]
    usual = [] if name == "train" else [[]]
    return usual + [[one] for one in chosen]


def _written(value: Any) -> str:
    """A value in hydra's grammar."""
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{_written(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{','.join(map(_written, value))}]"
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    return f"'{value}'" if isinstance(value, str) else repr(value)


def _settings(name: str, choice: list[str]) -> tuple[dict[str, Any], set[str]]:
    """The values of all keys with all that they are made of, and which are made of others."""
    root = [ROOT] if name == "train" or choice[:1] == ["data=coco"] else []
    plain = compose_config(name, [*choice, *root])
    with hydra_of_conf():
        raw = dict(leaves(OmegaConf.to_container(compose(name, choice), resolve=False)))
    values: dict[str, Any] = dict(leaves(plain)) | dict(_nodes(plain))
    settings = {
        key: "/x" if values[key] == "???" else values[key]
        for key in raw
        if not _DOTTED_ARM.match(key)
    }
    return settings, {key for key in settings if "${" in str(raw[key])}


def _nodes(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield f"{prefix}{key}", value
            yield from _nodes(value, f"{prefix}{key}.")


def _case(name: str, choice: list[str]) -> ParameterSet:
    # data=coco is the one of which a value is still to be given, of which others are made.
    quick = choice in ([], ["data=coco"]) or (name == "train" and choice[0].startswith("data="))
    marks = () if quick else pytest.mark.slow
    return pytest.param(name, choice, id=" ".join([name, *choice]), marks=marks)


@pytest.mark.parametrize(
    ("name", "choice"), [_case(name, choice) for name in SCRIPTS for choice in _choices(name)]
)
def test_all_together(name: str, choice: list[str]) -> None:
    settings, _ = _settings(name, choice)
    given = [f"{key}={_written(value)}" for key, value in settings.items()]
    (plain,) = check_command_line(name, arguments=[*choice, *given])
    after = dict(leaves(plain)) | dict(_nodes(plain))
    assert {key: after[key] for key in settings} == settings


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_that_is_made_of_others_alone(name: str) -> None:
    choice = ["data=coco"] if name == "train" else []
    settings, made = _settings(name, choice)
    needed = [f"{key}=/x" for key in ("checkpoint", "source", "rows") if key in settings]
    root = [ROOT] if name == "train" else []
    for key in made:
        own = f"{key}={_written(settings[key])}"
        (plain,) = check_command_line(name, arguments=[own, *choice, *root, *needed])
        assert (dict(leaves(plain)) | dict(_nodes(plain)))[key] == settings[key]


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_each_alone(name: str) -> None:
    choice = ["data=coco"] if name == "train" else []
    settings, _ = _settings(name, choice)
    needed = [f"{key}=/x" for key in ("checkpoint", "source", "rows") if key in settings]
    needed += [ROOT] if name == "train" else []
    for key, value in settings.items():
        own = f"{key}={_written(value)}"
        assert check_command_line(name, arguments=[*choice, *needed, own])


def test_an_arm_with_a_dot_in_its_name() -> None:
    own = "arms={only_0.1:{train:[train.epochs=2]}}"
    with pytest.raises(SystemExit, match="cannot be read"):
        check_command_line("ablate", arguments=[own])
    own = "arms={only_0.1:{train:['train.epochs=2']}}"
    (plain,) = check_command_line("ablate", arguments=[own])
    assert plain["arms"]["only_0.1"] == {"train": ["train.epochs=2"]}
    assert plain["arms"]["base"] == {}
