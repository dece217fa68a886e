"""The command lines of the scripts, as they are checked and brought to hydra."""

from __future__ import annotations

import functools
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sparse_dset.checks import check_shared_settings
from sparse_dset.config import (
    compose_config,
    config_dir,
    hydra_of_conf,
    nullable_settings,
    read_overrides,
    with_home,
)
from sparse_dset.overrides import as_written
from sparse_dset.paths import check_output_dir

_MULTIRUN = ("-m", "--multirun")


def script(name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Makes a function the job of a script: hydra composes its configuration and calls it.

    Args:
        name: the script's file in conf, without its ending.
    """

    def decorate(job: Callable[[DictConfig], Any]) -> Callable[[], None]:
        @hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=name)
        @functools.wraps(job)
        def run(cfg: DictConfig) -> Any:
            return job(with_home(cfg))

        return run

    return decorate


def check_command_line(
    name: str,
    validate: Callable[[dict[str, Any]], object] = lambda cfg: None,
    arguments: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Checks a script's command line, every value of a sweep included, before any job starts.

    Args:
        name: the script's file in conf, without its ending.
        validate: called with each configuration; raises ValueError for one that makes no sense.
        arguments: default ``sys.argv[1:]``, whose paths and names are then quoted for hydra where
            they must be.

    Returns:
        The configurations that were checked: the first value of every sweep, then each other value
        in turn; none where hydra is asked for something else, e.g. ``--help``.

    Raises:
        SystemExit: something is wrong; its message says what and names the nearest key.
    """
    typed = sys.argv[1:] if arguments is None else list(arguments)
    sweeps = _is_multirun(name, typed)
    try:
        written = as_written(typed, nullable=nullable_settings(name), sweeps=sweeps)
        if arguments is None:
            sys.argv[1:] = written
        if any(a.startswith("-") and a not in _MULTIRUN for a in typed):
            return []  # --help, --cfg, --config-dir and so on are hydra's alone
        checked = []
        for overrides in _jobs(name, written, sweeps):
            cfg = compose_config(name, overrides, complete=True)
            _check_folder(cfg)
            check_shared_settings(cfg)
            validate(cfg)
            checked.append(cfg)
        return checked
    except (ValueError, HydraException, OmegaConfBaseException) as error:
        raise SystemExit(f"error: {_naming_an_argument(str(error), typed)}") from error


def task_overrides() -> list[str]:
    """Returns the overrides of the running job as they stand on its command line."""
    overrides = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    assert isinstance(overrides, list)
    return overrides


def _naming_an_argument(message: str, typed: Sequence[str]) -> str:
    """Adds the arguments to a message in which none of their keys occurs."""
    settings = [argument for argument in typed if not argument.startswith("-")]
    for argument in settings:
        last = argument.partition("=")[0].rpartition(".")[2].lstrip("+~")
        if re.search(rf"\b{re.escape(last)}\b", message):
            return message
    return f"{message}\nThe arguments were: {shlex.join(settings)}" if settings else message


def _check_folder(plain: Mapping[str, Any]) -> None:
    """Refuses a folder for outputs that cannot be written, or not named by hydra for its log."""
    for prefix, holder in (("", plain), ("train.", plain.get("train") or {})):
        folder = holder.get("output_dir")
        if folder is None:
            continue
        if "${" in os.path.abspath(folder):
            raise ValueError(
                f"{prefix}output_dir={folder}: hydra takes ${{...}} in the name of this folder "
                f"({os.path.abspath(folder)}) for an interpolation; choose another"
            )
        check_output_dir(f"{prefix}output_dir", folder)


def _is_multirun(name: str, arguments: Sequence[str]) -> bool:
    mode = OmegaConf.select(OmegaConf.load(config_dir() / f"{name}.yaml"), "hydra.mode")
    modes = [a.partition("=")[2] for a in arguments if a.startswith("hydra.mode=")]
    return [mode, *modes][-1] == "MULTIRUN" or any(a in _MULTIRUN for a in arguments)


def _jobs(name: str, arguments: Sequence[str], sweeps: bool) -> list[list[str]]:
    """The overrides with the first value of every sweep, then with each other value in turn."""
    settings: list[str] = []
    for argument in arguments:
        if "=" not in argument and not argument.startswith(("~", "-")):
            whole = shlex.quote(" ".join([*settings[-1:], argument]))
            raise ValueError(
                f"{argument} is no setting: one is written key=value, and a value with a space in "
                f"it is quoted: {whole}"
            )
        if not argument.startswith("-"):
            settings.append(argument)
    read = read_overrides(name, settings)
    given = [_sweep_values(*one, sweeps) for one in zip(settings, read, strict=True)]
    first = [values[0] for values in given]
    return [first] + [
        [*first[:i], value, *first[i + 1 :]]
        for i, values in enumerate(given)
        for value in values[1:]
    ]


def _sweep_values(argument: str, override: Override, sweeps: bool) -> list[str]:
    """An override, or one for each value of a sweep; of an interval its ends."""
    if not override.is_sweep_override():
        return [argument]
    key, value = override.get_key_element(), override.value()
    if not sweeps:
        raise ValueError(
            f"{argument} holds several values: start the script with -m to run it with one after "
            f"the other, or write {key}=[...] for a list"
        )
    if isinstance(value, IntervalSweep):
        return [f"{key}={value.start}", f"{key}={value.end}"]
    with hydra_of_conf():  # glob(...) asks its loader for the choices
        loader = GlobalHydra.instance().config_loader()
        (override,) = OverridesParser.create(config_loader=loader).parse_overrides([argument])
    return [f"{key}={value}" for value in override.sweep_string_iterator()]
