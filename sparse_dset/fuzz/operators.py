"""Calls of every operator that the package registers, and of its public functions on tensors."""

from __future__ import annotations

from random import Random
from typing import Any

import torch

from sparse_dset.fuzz.arguments import (
    coarser,
    conv_arguments,
    dense_arguments,
    depthwise_arguments,
    draw_channels,
    draw_support,
    floats,
    perform_call,
    pointwise_arguments,
    sampling_arguments,
)


def registered() -> list[str]:
    """The names of all operators of the package, without its name."""
    schemas = torch._C._jit_get_all_schemas()
    return sorted({s.name.split("::")[1] for s in schemas if s.name.startswith("sparse_dset::")})


def _raw_sampling(rng: Random) -> dict[str, Any]:
    made = sampling_arguments(rng)
    supports = made.pop("supports")
    maps = [support.row_map().clone() for support in supports]
    sizes = [support.num_sites for support in supports]
    return {"rows": made.pop("rows"), "row_maps": maps, "level_sizes": sizes, **made}


def _conv_gradient(rng: Random) -> dict[str, Any]:
    conv = conv_arguments(rng)
    grad = floats(rng, len(conv["table"]), draw_channels(rng))
    return {
        k: grad if k == "grad" else conv[k]
        for k in ("features", "grad", "table", "row_map", "algorithm")
    }


def _dense_conv(rng: Random) -> dict[str, Any]:
    fixed = {"algorithm": "auto", "activation": "relu", "addend": None}
    return {**dense_arguments(rng, 3), **fixed}


def _sampling(rng: Random) -> dict[str, Any]:
    made = _raw_sampling(rng)
    return {**made, "whole_rows": rng.random() < 0.3}


def _sampling_backward(rng: Random) -> dict[str, Any]:
    made = _raw_sampling(rng)
    shape = made["locations"].shape
    return {"grad": floats(rng, *shape[:3], made["rows"].shape[1] // shape[2]), **made}


_OTHERS = {
    "pointwise_conv_cpu": pointwise_arguments,
    "dense_conv2d_cpu": _dense_conv,
    "deform_attn_cpu": _sampling,
    "deform_attn_cpu_backward": _sampling_backward,
}


def _operator_arguments(rng: Random, name: str) -> dict[str, Any]:
    """Arguments that fit an operator."""
    support = draw_support(rng)
    if name == "sites_of_mask":
        return {"mask": support.mask().clone()}
    if name == "parent_rows":
        return {
            "indices": support.indices.clone(),
            "coarser_row_map": coarser(support).row_map().clone(),
        }
    if name == "window_table":
        return {
            "row_map": support.row_map().clone(),
            "indices": support.indices.clone(),
            "size": rng.choice((1, 3, 5)),
            "stride": 1,
        }
    if name == "inverse_table":
        return {"table": support.neighbors().clone(), "num_rows": support.num_sites}
    if name == "chosen_algorithm":
        return {
            "table": support.neighbors().clone(),
            "row_map": support.row_map().clone(),
            "in_channels": 32,
            "out_channels": 64,
        }
    if name == "sparse_conv2d_cpu":
        extra: dict[str, Any] = {"transposed": False, "addend": None}
        conv = conv_arguments(rng)
        if rng.random() < 0.2:
            extra["addend"] = floats(rng, len(conv["table"]), len(conv["weight"]))
        return {**conv, **extra}
    if name == "sparse_conv2d_cpu_weight_gradient":
        return _conv_gradient(rng)
    if name == "depthwise_conv2d_cpu":
        return depthwise_arguments(rng)
    if name == "depthwise_conv2d_cpu_weight_gradient":
        made = depthwise_arguments(rng)
        grad = floats(rng, len(made["table"]), made["features"].shape[1])
        return {"features": made["features"], "grad": grad, "table": made["table"]}
    if name in ("sparse_conv2d", "depthwise_conv2d", "sparse_conv2d_spconv"):
        made = conv_arguments(rng) if name.startswith("sparse") else depthwise_arguments(rng)
        return {key: made[key] for key in ("features", "weight", "table")}
    if name in _OTHERS:
        return _OTHERS[name](rng)
    if name == "set_costs":
        return {"values": [0.006, 0.0037, 0.0020, 3.7, 10.9, 0.17]}
    return {}


def operator(rng: Random, folder: object) -> None:
    """One call of a registered operator."""
    name = rng.choice(registered())
    operators = torch.ops.sparse_dset
    costs = operators.get_costs() if name == "set_costs" else None
    try:
        perform_call(rng, (getattr(operators, name), _operator_arguments(rng, name)))
    finally:
        if costs is not None:
            operators.set_costs(costs)
