"""Places the tensors of a released RT-DETRv2 checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sparse_dset.models.wrapped_names import without_wrappers

_DERIVED = re.compile(r"decoder\.(anchors|valid_mask)$|.*\.num_batches_tracked$")
"""Buffers that files may hold or lack: made anew for every image size, or counters."""

_OWN = re.compile(r"(pruner|losses)\.|.*\.moe\.router\.|decoder\.background$")
"""Parts that RT-DETRv2 does not have."""

_EXPERT_NAMES = {
    "linear1.weight": "moe.experts.weight1",
    "linear1.bias": "moe.experts.bias1",
    "linear2.weight": "moe.experts.weight2",
    "linear2.bias": "moe.experts.bias2",
}


def place_rtdetr(released: Mapping[str, Any], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns a full state dict with the released tensors in their places.

    Feed-forward layers go to every expert where the detector has experts ("sparse upcycling",
    Komatsuzaki et al., 2023).

    Args:
        released: name -> tensor, or a released training file (``ema.module`` or ``model`` inside).
        own: the detector's state dict, from which the parts that RT-DETRv2 lacks are taken.

    Raises:
        ValueError: names that have no place, names that are missing, shapes that differ.
    """
    placed = dict(own)
    filled, problems = set(), []
    for name, tensor in spread_to_experts(_unwrap(released, own), own).items():
        if name not in own:
            if not _DERIVED.match(name):
                problems.append(f"{name}: no such parameter here")
            continue
        filled.add(name)
        if tensor.shape != own[name].shape:
            problems.append(f"{name}: shape {tuple(tensor.shape)}, here {tuple(own[name].shape)}")
            continue
        placed[name] = tensor
    problems += [
        f"{name}: missing from the file"
        for name in own
        if not (name in filled or _OWN.match(name) or _DERIVED.match(name))
    ]
    if problems:
        shown = "\n  ".join(problems[:20]) + ("\n  ..." if len(problems) > 20 else "")
        raise ValueError(
            f"{len(problems)} entries of the RT-DETRv2 state dict do not fit this model (is it the "
            f"right size and num_classes?):\n  {shown}"
        )
    return placed


def spread_to_experts(named: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames dense feed-forward layers to the experts that ``own`` has in their place.

    Every expert gets a copy; tensors that need no other name stay as they are.
    """
    spread = {}
    for name, tensor in named.items():
        expert = _expert_name(name)
        if name not in own and expert in own:
            name, tensor = expert, tensor.unsqueeze(0).expand(len(own[expert]), *tensor.shape)
        spread[name] = tensor
    return spread


def _unwrap(released: Mapping[str, Any], own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return without_wrappers(_weights(released), own)


def _weights(released: Mapping[str, Any]) -> Mapping[str, Tensor]:
    if "ema" not in released:
        return released.get("model", released)
    if "module" not in released["ema"]:
        raise ValueError(
            "this is no released RT-DETRv2 file (its 'ema' has no 'module'); open a checkpoint of "
            "this project with load_detector"
        )
    return released["ema"]["module"]


def _expert_name(name: str) -> str:
    for dense, expert in _EXPERT_NAMES.items():
        if name.endswith(dense):
            return name.removesuffix(dense) + expert
    return name
