"""Checks of settings: the message names the setting, what it may be, and what it was."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


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


_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
_KINDS: dict[str, Callable[[torch.dtype], bool]] = {
    "float": lambda dtype: dtype.is_floating_point,
    "integer": lambda dtype: dtype in _INTEGERS,
    "bool": lambda dtype: dtype == torch.bool,
    "real": lambda dtype: not dtype.is_complex,
}


def check_tensor(
    name: str, tensor: Tensor, shape: str, kind: str = "float", device: torch.device | None = None
) -> None:
    """Checks an argument that is a tensor; values are not looked at.

    Args:
        name: of the argument.
        tensor: what was given.
        shape: as one writes it, e.g. "[B, H, W]"; the number of dimensions is checked.
        kind: "float", "integer" (or bool), "bool" or "real" (all but complex numbers).
        device: where it must be; None: anywhere.

    Raises:
        ValueError: it has other dimensions, another type, no dense memory, or is elsewhere.
    """
    if (
        tensor.dim() != shape.partition("]")[0].count(",") + 1
        or tensor.layout != torch.strided
        or not _KINDS[kind](tensor.dtype)
        or (device is not None and tensor.device != device)
    ):
        place = "" if device is None else f" on {device}"
        words = {"float": "floats", "integer": "integers", "bool": "bool", "real": "numbers"}
        layout = "" if tensor.layout == torch.strided else f" {tensor.layout}"
        raise ValueError(
            f"{name} must be {shape} of {words[kind]}, in dense memory{place}, got "
            f"{tensor.dtype} {tuple(tensor.shape)} on {tensor.device}{layout}"
        )


def check_table(table: Tensor, features: Tensor, weight: Tensor) -> None:
    """Checks the arguments of a convolution of rows that a table names.

    Args:
        table: int32 ``[N_out, taps]``, which row of ``features`` lies under each tap, or -1.
        features: ``[N, C]``.
        weight: ``[C_out, C_in / groups, k, k]`` of the same type, with as many taps.

    Raises:
        ValueError: one does not fit the others; on a CPU also: a row that is not there.
    """
    check_tensor("features", features, "[N, C]")
    check_tensor("weight", weight, "[C_out, C_in / groups, k, k]", "float", features.device)
    check_tensor("table", table, "[N_out, taps]", "integer", features.device)
    taps, channels = weight.shape[2] * weight.shape[3], features.shape[1]
    if weight.dtype != features.dtype or table.dtype != torch.int32 or table.shape[1] != taps:
        raise ValueError(
            f"weight must be {features.dtype} and table int32 [N, {taps}], got {weight.dtype} and "
            f"{table.dtype} {tuple(table.shape)}"
        )
    if channels not in (weight.shape[1], weight.shape[0] if weight.shape[1] == 1 else -1):
        raise ValueError(
            f"weight {tuple(weight.shape)} does not fit features of {channels} channels"
        )
    if table.is_cpu and type(table) is Tensor and table.numel():
        last = int(table.max())
        if last >= len(features):
            raise ValueError(f"table names row {last} of {len(features)}")


def check_has_values(name: str, tensor: Tensor) -> None:
    """Checks that a tensor holds its values in dense memory.

    Raises:
        ValueError: it is on the device "meta", where there are none, or stored sparsely.
    """
    if tensor.is_meta:
        raise ValueError(f"{name} must hold values, and a tensor on the device 'meta' holds none")
    if tensor.layout != torch.strided:
        raise ValueError(f"{name} must be in dense memory, got {tensor.layout}: give x.to_dense()")


def check_inside(name: str, index: Tensor, count: int, size: int, device: torch.device) -> None:
    """Checks an argument that names rows, without holding up a GPU.

    Args:
        name: of the argument.
        index: what was given.
        count: how many rows it must name.
        size: of how many rows.
        device: where it must be.

    Raises:
        ValueError: it is not int64 ``[count]``, or is elsewhere.
        RuntimeError: on a CPU, it names a row that is not there.
    """
    check_tensor(name, index, f"[{count}]", "integer", device)
    if index.dtype != torch.int64 or len(index) != count:
        raise ValueError(f"{name} must be int64 [{count}], got {index.dtype} {tuple(index.shape)}")
    if index.is_cpu and count:
        # An assertion within the graph: compiled code keeps it.
        inside = ((index >= 0) & (index < size)).all()
        torch._assert_async(inside, f"sparse_dset: {name} must be in 0..{size - 1}, one is outside")


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Tells whether autograd will ask for the gradient of any of these."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def check_gradient(*tensors: Tensor | None) -> None:
    """Checks that tensors can be kept for a gradient, where one will be asked for.

    Raises:
        ValueError: see ``savable``.
    """
    if needs_gradient(*tensors):
        savable(*tensors)


def savable(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Returns tensors that a gradient will need.

    Raises:
        ValueError: one was made under ``torch.inference_mode``, which no gradient can use.
    """
    if any(tensor is not None and tensor.is_inference() for tensor in tensors):
        raise ValueError(
            "a tensor made under torch.inference_mode() has no part in gradients: make it outside "
            "or give x.clone(), or do not ask for gradients"
        )
    return tensors
