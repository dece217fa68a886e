"""The figures of the published audit, beside those that are counted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sparse_dset.benchmark.flops import count_flops, count_module_flops
from sparse_dset.benchmark.table import by_part
from sparse_dset.models.detector import Detector

CLAIMED_SIZE = (736, 1280)
CLAIMED_RATIO = 0.7
"""Image size and keep ratio of the published audit, which is about a ResNet-18 without experts."""

_CLAIMED = {
    "attention within stride 32, without its projections": 867.0,
    "feed-forward part of the encoder": 472.0,
    "FPN and PAN": 45.0,
    "value projections of the decoder": 12.0,
    "backbone": None,
    "whole network": 1400.0,
}
"""GFLOPs, as a public audit of DSET gives them."""

CLAIMED_SAVING = 0.48
"""The share of all compute that it says is saved."""


def is_claimed(config: Mapping[str, Any], images: Tensor) -> bool:
    """Tells whether the published audit is about this network and image size."""
    model = config["model"]
    known = model["backbone"].get("depth") == 18 and model["encoder"]["moe"] is None
    return known and tuple(images.shape[-2:]) == CLAIMED_SIZE


@torch.no_grad()
def compare_with_claims(model: Detector, images: Tensor) -> list[dict[str, Any]]:
    """Sets the figures of the published audit beside those that are counted.

    Args:
        model, images: see `audit`; the published ones, see `is_claimed`.

    Returns:
        Per part: ``part``, ``claimed`` (GFLOPs, None: left out there) and ``counted``, of the dense
        execution, per image.
    """
    names = {
        part: f"encoder.encoder.0.layers.0.{part}" for part in ("self_attn", "linear1", "linear2")
    }
    for i in range(len(model.decoder.decoder.layers)):
        names[f"value {i}"] = f"decoder.decoder.layers.{i}.cross_attn.value_proj"
    modules = {part: model.get_submodule(name) for part, name in names.items()}
    flops = count_module_flops(model, modules, images, execution="dense")
    sums = {name: sum(operators.values()) for name, operators in flops.items()}
    pairs = [gflops for name, gflops in flops["self_attn"].items() if "bmm" in name]
    whole = by_part(count_flops(model, images, execution="dense"))
    counted = [
        sum(pairs),
        sums["linear1"] + sums["linear2"],
        whole["neck"],
        sum(gflops for name, gflops in sums.items() if name.startswith("value")),
        whole["backbone"],
        whole["total"],
    ]
    return [
        {"part": part, "claimed": claimed, "counted": gflops / len(images)}
        for (part, claimed), gflops in zip(_CLAIMED.items(), counted, strict=True)
    ]
