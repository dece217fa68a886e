"""Finds, composes and checks configurations, and builds detectors from them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from torch import nn

from sparse_dset.models.detector import Detector
from sparse_dset.models.pruner import check_keep_ratio

_PACKAGE = Path(__file__).resolve().parent


def config_dir() -> Path:
    """Returns the folder of configurations: ``conf`` of a checkout, or inside an installed package."""
    for folder in (_PACKAGE.parent / "conf", _PACKAGE / "conf"):
        if (folder / "detector.yaml").is_file():
            return folder
    raise FileNotFoundError(f"no conf/detector.yaml beside or inside {_PACKAGE}: reinstall")


def compose_config(name: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Composes ``conf/<name>.yaml`` with hydra overrides into a plain, resolved dict.

    Raises:
        ValueError: an unknown group, option or key (the nearest known one is named), or a value
            out of its range.
    """
    previous = dict(GlobalHydra._instances)  # type: ignore[attr-defined]  # noqa: SLF001
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            try:
                cfg = compose(name, overrides=list(overrides))
            except HydraException as error:
                raise ValueError(_explain(error, name, overrides)) from error
            return check_config(cfg)
    finally:
        GlobalHydra._instances.update(previous)  # type: ignore[attr-defined]  # noqa: SLF001


def check_config(cfg: DictConfig) -> dict[str, Any]:
    """Returns a composed configuration as a plain, resolved dict, after checks across groups."""
    plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
    assert isinstance(plain, dict)
    check_keep_ratio(plain["pruner"]["keep_ratio"], "pruner.keep_ratio")
    return plain  # type: ignore[return-value]


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
    return hydra.utils.instantiate(model, _convert_="all")


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
    known = _known_keys(compose(name))
    for override in overrides:
        key = override.lstrip("+~").split("=")[0]
        close = difflib.get_close_matches(key, known, n=1)
        if key not in known and close:
            return f"{error}\n{key!r} is not known here; did you mean {close[0]!r}?"
    return str(error)


def _known_keys(node: DictConfig, prefix: str = "") -> list[str]:
    keys = []
    for key, value in node.items_ex(resolve=False):
        keys.append(f"{prefix}{key}")
        if isinstance(value, DictConfig) and not OmegaConf.is_missing(node, key):
            keys += _known_keys(value, f"{prefix}{key}.") if value._is_none() is False and not value._is_interpolation() else []  # noqa: SLF001, E501
    return keys


def count_parameters(model: nn.Module) -> int:
    """Returns the number of trainable values."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
