"""Checks of settings: the message names the setting, what it may be, and what it was."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch


def check_number(
    name: str,
    value: Any,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    whole: bool = False,
) -> None:
    """Checks a setting that is a number.

    Args:
        name: of the setting, as one writes it, e.g. "train.epochs".
        value: what it was set to.
        at_least, above, at_most, below: its range; None: open on that side.
        whole: it must be an integer.

    Raises:
        ValueError: it is no finite number, or out of its range.
    """
    kinds = int if whole else (int, float)
    fits = isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
    fits = fits and (at_least is None or value >= at_least) and (above is None or value > above)
    fits = fits and (at_most is None or value <= at_most) and (below is None or value < below)
    if not fits:
        limits = (
            ("of at least", at_least),
            ("above", above),
            ("of at most" if at_least is None and above is None else "at most", at_most),
            ("below", below),
        )
        wanted = " and ".join(f"{word} {limit:g}" for word, limit in limits if limit is not None)
        kind = "a whole number" if whole else "a number"
        raise ValueError(f"{name} must be {kind} {wanted}".rstrip() + f", got {value!r}")


def check_size(name: str, size: Any, *, at_least: int = 1) -> None:
    """Checks a setting that is (height, width).

    Raises:
        ValueError: it is not a list of two whole numbers, or one is too small.
    """
    if not isinstance(size, Sequence) or isinstance(size, str) or len(size) != 2:
        raise ValueError(f"{name} must be [height, width], got {size!r}")
    for value in size:
        check_number(f"{name}=[height, width]", value, at_least=at_least, whole=True)


def check_list(name: str, values: Any) -> None:
    """Checks a setting that is a list.

    Raises:
        ValueError: it is a single value, or no list at all.
    """
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise ValueError(f"{name} must be a list: write {name}=[{values}]")


def check_device(name: str, device: Any) -> None:
    """Checks a setting that is a device: auto, or a name that PyTorch knows.

    Raises:
        ValueError: it is neither.
    """
    try:
        known = isinstance(device, str) and (device == "auto" or bool(torch.device(device).type))
    except RuntimeError:
        known = False
    if not known:
        raise ValueError(f"{name} must be auto, cpu or cuda, got {device!r}")


def check_shared_settings(plain: Mapping[str, Any]) -> None:
    """Checks the settings that scripts have in common, as far as a configuration has them.

    Args:
        plain: the configuration of a script.

    Raises:
        ValueError: one is out of its range.
    """
    for name, least in (("batch_size", 1), ("eval_batch_size", 1), ("num_workers", 0)):
        if name in plain:
            check_number(name, plain[name], at_least=least, whole=True)
    if plain.get("threads") is not None:  # null is PyTorch's choice
        check_number("threads", plain["threads"], at_least=1, whole=True)
    if "device" in plain:
        check_device("device", plain["device"])
