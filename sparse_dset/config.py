"""Finds, composes and checks configurations, and builds detectors from them."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sparse_dset.models.detector import Detector
from sparse_dset.models.pruner import check_keep_ratio

_PACKAGE = Path(__file__).resolve().parent


def package_file(path: str) -> str:
    """Returns where a file of the package lies; in conf: ``${package_file:weights/x.pt}``."""
    return str(_PACKAGE / path)


OmegaConf.register_new_resolver("package_file", package_file, replace=True)


def config_dir() -> Path:
    """Returns the folder of configurations: ``conf`` of a checkout, or in the installed package."""
    for folder in (_PACKAGE.parent / "conf", _PACKAGE / "conf"):
        if (folder / "detector.yaml").is_file():
            return folder
    raise FileNotFoundError(f"no conf/detector.yaml beside or inside {_PACKAGE}: reinstall")


def compose_config(
    name: str, overrides: Sequence[str] = (), *, complete: bool = False
) -> dict[str, Any]:
    """Composes ``conf/<name>.yaml`` with hydra overrides into a plain, resolved dict.

    Args:
        name: a file in conf, without its ending.
        overrides: as on the command line.
        complete: refuse a configuration of which a value is still to be given.

    Raises:
        ValueError: an unknown group, option or key (the nearest known one is named), a value out of
            its range, or one that is missing.
    """
    outer = GlobalHydra.instance().hydra  # the script's own, where a script composes another
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            try:
                cfg = compose(name, overrides=list(overrides))
                _check_flags(cfg, name, overrides)
                if complete:
                    _check_complete(cfg)
                return check_config(cfg)
            except (HydraException, OmegaConfBaseException) as error:
                raise ValueError(_explain(error, name, overrides)) from error
    finally:
        GlobalHydra.instance().hydra = outer


def check_config(cfg: DictConfig) -> dict[str, Any]:
    """Returns a composed configuration as a plain, resolved dict, after checks across groups."""
    plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
    assert isinstance(plain, dict)
    for holder in (plain, plain.get("model") or {}):
        pruner = holder.get("pruner") or {}
        if pruner.get("keep_ratio") is not None:  # null leaves it to a checkpoint or to a list
            pruner["keep_ratio"] = check_keep_ratio(pruner["keep_ratio"], "pruner.keep_ratio")
    return plain  # type: ignore[return-value]


def check_command_line(
    name: str,
    validate: Callable[[dict[str, Any]], object] = lambda cfg: None,
    arguments: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Checks a script's command line, every value of a sweep included, before any job starts.

    Args:
        name: the script's file in conf, without its ending.
        validate: called with each configuration; raises ValueError for one that makes no sense.
        arguments: default ``sys.argv[1:]``.

    Returns:
        The configurations that were checked: the first value of every sweep, then each other value
        in turn; none where hydra is asked for something else, e.g. ``--help``.

    Raises:
        SystemExit: something is wrong; its message says what and names the nearest key.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if any(a.startswith("-") and a not in ("-m", "--multirun") for a in arguments):
        return []  # --help, --cfg, --config-dir and so on are hydra's alone
    try:
        given = [_sweep_values(a) for a in arguments if "=" in a and not a.startswith("-")]
        first = [values[0] for values in given]
        jobs = [first] + [
            [*first[:i], value, *first[i + 1 :]]
            for i, values in enumerate(given)
            for value in values[1:]
        ]
        checked = []
        for overrides in jobs:
            cfg = compose_config(name, overrides, complete=True)
            validate(cfg)
            checked.append(cfg)
        return checked
    except (ValueError, HydraException, OmegaConfBaseException) as error:
        raise SystemExit(f"error: {error}") from error


def _check_flags(cfg: DictConfig, name: str, overrides: Sequence[str]) -> None:
    """Refuses words for settings that are on or off: "no" and "off" would count as on."""
    given = OverridesParser.create().parse_overrides(list(overrides))
    values = {o.key_or_group: OmegaConf.select(cfg, o.key_or_group) for o in given}
    words = {key: value for key, value in values.items() if isinstance(value, str)}
    if not words:
        return
    choices = [o.input_line for o in given if (config_dir() / o.key_or_group).is_dir()]
    usual = compose(name, overrides=[choice for choice in choices if choice is not None])
    for key, value in words.items():
        if isinstance(OmegaConf.select(usual, key), bool):
            raise ValueError(f"{key} must be true or false, got {value!r}")


def _check_complete(cfg: DictConfig) -> None:
    """Names the first value that is still to be given."""
    for key, value in leaves(OmegaConf.to_container(cfg, resolve=False)):
        if value == "???":
            raise ValueError(f"{key} must be given: {key}=...")


def leaves(node: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Gives the dotted name and the value of whatever is no dict in nested dicts."""
    if not isinstance(node, dict):
        yield prefix.removesuffix("."), node
        return
    for key, value in node.items():
        yield from leaves(value, f"{prefix}{key}.")


def _sweep_values(text: str) -> list[str]:
    """An override, or one for each value of a sweep; of an interval its ends."""
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()  # glob(...) asks it for the choices
    (override,) = OverridesParser.create(config_loader=loader).parse_overrides([text])
    key, value = override.get_key_element(), override.value()
    if isinstance(value, IntervalSweep):
        return [f"{key}={value.start}", f"{key}={value.end}"]
    if not override.is_discrete_sweep():
        return [text]
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


def with_pruner(config: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a detector's configuration with other settings of its pruner."""
    model = config["model"]
    return {**config, "model": {**model, "pruner": {**model["pruner"], **settings}}}


def build_from_config(cfg: Mapping[str, Any], *, pretrained: bool = True) -> Detector:
    """Builds a detector.

    Args:
        cfg: a plain, resolved configuration with the key ``model``.
        pretrained: load the backbone's weights where the configuration names some; False when a
            checkpoint follows.
    """
    model = dict(cfg["model"])
    if not pretrained and "weights" in model["backbone"]:
        model["backbone"] = {**model["backbone"], "weights": None}
    try:
        return hydra.utils.instantiate(model, _convert_="all")
    except InstantiationException as error:
        # What the constructor said is clearer than where hydra was when it said it.
        if isinstance(error.__cause__, ValueError | ImportError):
            raise error.__cause__ from None
        raise


def build_detector(
    name: str, num_classes: int = 80, overrides: Sequence[str] = (), *, pretrained: bool = True
) -> Detector:
    """Builds a detector from ``conf/model/<name>.yaml``.

    Args:
        name: a file in conf/model, e.g. "r18".
        num_classes: K.
        overrides: hydra overrides, e.g. ``["pruner.keep_ratio=0.3"]``.
        pretrained: see ``build_from_config``.
    """
    known = sorted(p.stem for p in (config_dir() / "model").glob("[!_]*.yaml"))
    if name not in known:
        raise ValueError(f"no model is called {name!r}; there are {', '.join(known)}")
    cfg = compose_config(
        "detector", [f"model={name}", f"model.num_classes={num_classes}", *overrides]
    )
    return build_from_config(cfg, pretrained=pretrained)


def _explain(error: Exception, name: str, overrides: Sequence[str]) -> str:
    """Adds the nearest known key to hydra's message about an override that it refused."""
    known = _known_keys(OmegaConf.to_container(compose(name), resolve=False))
    groups = {path.name for path in config_dir().iterdir() if path.is_dir()}
    for override in overrides:
        key = override.lstrip("+~").split("=")[0]
        close = _nearest(key, [*known, *groups])
        if key not in known and key.split("/")[0] not in groups and close:
            return f"{error}\n{key!r} is not known here; did you mean {close!r}?"
    return str(error)


def _nearest(key: str, known: Sequence[str]) -> str | None:
    """Finds the known key that is most like one, which may lack its groups."""
    last_parts = {name.rpartition(".")[2]: name for name in reversed(known)}
    close = difflib.get_close_matches(key, known, n=1)
    close += [last_parts[k] for k in difflib.get_close_matches(key, last_parts, n=1, cutoff=0.5)]
    return close[0] if close else None


def _known_keys(node: object, prefix: str = "") -> list[str]:
    """Lists the dotted names of all keys of nested dicts."""
    if not isinstance(node, dict):
        return []
    own = [f"{prefix}{key}" for key in node]
    return own + [name for k, v in node.items() for name in _known_keys(v, f"{prefix}{k}.")]
