"""Finds, composes and checks configurations, and builds detectors from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sparse_dset.checks import check_number, check_size
from sparse_dset.composition import check_complete, check_flags, explain, explain_unknown, leaves
from sparse_dset.data.view import View
from sparse_dset.instantiate import instantiate
from sparse_dset.losses.criterion import Criterion
from sparse_dset.models.detector import Detector
from sparse_dset.models.pruner import check_keep_ratio
from sparse_dset.overrides import as_written, escaped, is_path, parsed
from sparse_dset.paths import expand_home

LARGEST_NUMBER = 2**31 - 1
"""Of a model's settings: what the kernels count, they count in 32 bits."""

_PACKAGE = Path(__file__).resolve().parent


def package_file(path: str) -> str:
    """Returns where a file of the package lies; in conf: ``${package_file:weights/x.pt}``."""
    return str(_PACKAGE / path)


OmegaConf.register_new_resolver("package_file", package_file, replace=True)
OmegaConf.register_new_resolver("expand_home", expand_home, replace=True)
OmegaConf.register_new_resolver("any", lambda *values: any(values), replace=True)


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
        overrides: as on the command line; paths and names need no quotes, see `as_written`.
        complete: refuse a configuration of which a value is still to be given.

    Raises:
        ValueError: an unknown group, option or key (the nearest known one is named), a value out of
            its range, or one that is missing.
    """
    written = as_written(overrides, nullable=nullable_settings(name))
    given = read_overrides(name, written)
    with hydra_of_conf():
        try:
            cfg = compose(name, overrides=written)
            usual = _without_values(name, given)
            check_flags(cfg, usual, given)
            if complete:
                check_complete(cfg, usual)
            return check_config(cfg)
        except (HydraException, OmegaConfBaseException) as error:
            usual = _without_values(name, given)
            raise ValueError(explain(error, usual, written, given, options())) from error


def read_overrides(name: str, arguments: Sequence[str]) -> list[Override]:
    """Reads arguments as hydra does.

    Args:
        name: a file in conf, without its ending.
        arguments: key=value, as `as_written` gives them.

    Raises:
        ValueError: one cannot be read; the message shows how it is quoted, or names the known key
            that is nearest.
    """
    read, refused = [], []
    for argument in arguments:
        try:
            read.append(parsed(argument))
        except ValueError as error:
            refused.append((argument, error))
    if not refused:
        _check_choices(read, options())
        return read
    argument, reason = refused[0]
    with hydra_of_conf():
        usual = _without_values(name, read)
    key = argument.partition("=")[0].lstrip("+~")
    raise ValueError(explain_unknown(argument, key, usual, options()) or str(reason))


def _check_choices(given: Sequence[Override], known: Mapping[str, Sequence[str]]) -> None:
    """Refuses a number where a file of a group is to be named, which hydra does not name."""
    for override in given:
        group = override.key_or_group
        if group in known and isinstance(override._value, bool | int | float | dict):
            raise ValueError(
                f"{override.input_line}: {group} must name a file in conf/{group}; there are "
                f"{', '.join(known[group])}"
            )


@contextmanager
def hydra_of_conf() -> Iterator[None]:
    """Lets hydra compose configurations of conf; a script's own hydra is as it was afterwards."""
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra = outer


def check_config(cfg: DictConfig) -> dict[str, Any]:
    """Returns a composed configuration as a plain, resolved dict, after checks across groups.

    A leading ``~`` of a path is the home folder.
    """
    plain = OmegaConf.to_container(with_home(cfg), resolve=True, throw_on_missing=False)
    assert isinstance(plain, dict)
    for holder in (plain, plain.get("model") or {}):
        pruner = holder.get("pruner") or {}
        if pruner.get("keep_ratio") is not None:  # null leaves it to a checkpoint or to a list
            pruner["keep_ratio"] = check_keep_ratio(pruner["keep_ratio"], "pruner.keep_ratio")
    return plain  # type: ignore[return-value]


def with_home(cfg: DictConfig) -> DictConfig:
    """Returns a configuration with a leading ``~`` of every path replaced by the home folder."""
    cfg = cfg.copy()
    for key, _ in leaves(OmegaConf.to_container(cfg, resolve=False)):
        if not is_path(key):
            continue
        value = OmegaConf.select(cfg, key, throw_on_resolution_failure=False)
        if isinstance(value, str) and value.startswith("~"):
            OmegaConf.update(cfg, key, escaped(expand_home(value)))
        elif isinstance(value, ListConfig):
            paths = [expand_home(item) if isinstance(item, str) else item for item in value]
            if paths != list(value):
                OmegaConf.update(cfg, key, [escaped(path) for path in paths])
    return cfg


@cache
def nullable_settings(name: str) -> frozenset[str]:
    """Returns the settings of which ``conf/<name>.yaml`` says null, so that null is no text."""
    file = config_dir() / f"{name}.yaml"
    content = OmegaConf.to_container(OmegaConf.load(file)) if file.is_file() else {}
    return frozenset(key for key, value in leaves(content) if value is None)


@cache
def options() -> dict[str, list[str]]:
    """Returns the groups of conf with their options."""
    folders = [path for path in config_dir().rglob("*") if path.is_dir()]
    return {
        str(folder.relative_to(config_dir())): sorted(p.stem for p in folder.glob("[!_]*.yaml"))
        for folder in folders
    }


def _without_values(name: str, given: Sequence[Override]) -> DictConfig:
    """Composes what the same choices of groups give without any value of the command line."""
    choices = [o.input_line for o in given if o.key_or_group in options()]
    return _composed_of_choices(name, tuple(line for line in choices if line is not None))


@cache
def _composed_of_choices(name: str, choices: tuple[str, ...]) -> DictConfig:
    try:
        return compose(name, overrides=list(choices))
    except (HydraException, OmegaConfBaseException):  # one of the choices is at fault
        return compose(name)


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

    Raises:
        ValueError: a setting that is out of its range.
    """
    model = dict(cfg["model"])
    _check_magnitudes("model", model)
    size = model.pop("image_size", None)  # the view says it, where there is one
    if size is not None and model.get("view") is None:
        check_size("model.image_size", size)
        model["view"] = View(tuple(size)).as_config()
    if not pretrained and "weights" in model["backbone"]:
        model["backbone"] = {**model["backbone"], "weights": None}
    detector = instantiate(model)
    if not isinstance(detector, Detector):
        raise ValueError(
            f"model._target_ must name a detector, got {model.get('_target_')!r}, which makes a "
            f"{type(detector).__name__}"
        )
    return detector


def _check_magnitudes(name: str, value: Any) -> None:
    """Refuses numbers that no network has, before anything is made as large as that."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            _check_magnitudes(f"{name}.{key}", entry)
    elif isinstance(value, list):
        for entry in value:
            _check_magnitudes(name, entry)
    elif isinstance(value, int):
        check_number(name, int(value), at_most=LARGEST_NUMBER)


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


def build_criterion(overrides: Sequence[str] = ()) -> Criterion:
    """Builds the losses of ``conf/losses/default.yaml``, for a training loop of one's own.

    Args:
        overrides: hydra overrides, the same as for the detector that is trained: heads that only
            a loss needs are made where that loss is on.
    """
    return instantiate(compose_config("detector", overrides)["losses"])
