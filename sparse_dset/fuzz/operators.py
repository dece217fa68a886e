"""Calls of every operator that the package registers, and of its public functions on tensors."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import torch
from torch import Tensor

from sparse_dset import ops
from sparse_dset.fuzz.mutate import changed_arguments
from sparse_dset.models.postprocess import select_detections
from sparse_dset.structures import MaskedMap, SparseMap, Support, check_nested
from sparse_dset.structures.ragged import Ragged
from sparse_dset.structures.targets import pad_targets

Call = tuple[Callable[..., Any], dict[str, Any]]


def registered() -> list[str]:
    """The names of all operators of the package, without its name."""
    schemas = torch._C._jit_get_all_schemas()
    return sorted({s.name.split("::")[1] for s in schemas if s.name.startswith("sparse_dset::")})


def floats(rng: Random, *shape: int) -> Tensor:
    """Normal numbers that follow from the random state."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(rng.randrange(2**31)))


def _mask(rng: Random, batch: int, height: int, width: int) -> Tensor:
    return floats(rng, batch, height, width) < rng.choice((-9.0, -0.5, 0.5, 9.0))


def _support(rng: Random) -> Support:
    return Support.from_mask(_mask(rng, rng.randint(1, 2), rng.randint(1, 9), rng.randint(1, 9)))


def _coarser(support: Support) -> Support:
    shape = support.batch_size, (support.height + 1) // 2, (support.width + 1) // 2
    return Support.full(*shape)


def _channels(rng: Random) -> int:
    return rng.choice((1, 2, 3, 8, 17, 32, 33))


def _conv(rng: Random) -> dict[str, Any]:
    """Arguments of the 3x3 convolution kernel."""
    support, c_in, c_out = _support(rng), _channels(rng), _channels(rng)
    strided = rng.random() < 0.3
    target = _coarser(support) if strided else support
    table = target.strided_neighbors(support) if strided else support.neighbors()
    return {
        "features": floats(rng, support.num_sites, c_in),
        "weight": floats(rng, c_out, c_in, 3, 3),
        "bias": floats(rng, c_out) if rng.random() < 0.5 else None,
        "table": table.clone(),
        "row_map": None if strided else support.row_map().clone(),
        "algorithm": rng.choice(("auto", "indirect", "winograd2", "winograd4")),
        "activation": rng.choice(("none", "none", "relu", "relu6", "silu")),
    }


def _depthwise(rng: Random) -> dict[str, Any]:
    support, size, channels = _support(rng), rng.choice((1, 3, 5, 7)), _channels(rng)
    return {
        "features": floats(rng, support.num_sites, channels),
        "weight": floats(rng, channels, 1, size, size),
        "bias": floats(rng, channels) if rng.random() < 0.5 else None,
        "table": support.neighbors(size).clone(),
        "activation": rng.choice(("none", "relu", "silu")),
    }


def _sampling(rng: Random) -> dict[str, Any]:
    batch, queries, heads = rng.randint(1, 2), rng.randint(1, 5), rng.choice((1, 2, 4))
    levels, points, dim = rng.randint(1, 3), rng.randint(1, 3), rng.choice((1, 3, 8))
    supports = [
        Support.from_mask(_mask(rng, batch, rng.randint(1, 6), rng.randint(1, 6)))
        for _ in range(levels)
    ]
    return {
        "rows": floats(rng, sum(s.num_sites for s in supports), heads * dim),
        "supports": supports,
        "locations": floats(rng, batch, queries, heads, levels, points, 2) * 0.5 + 0.5,
        "weights": floats(rng, batch, queries, heads, levels, points),
        "extents": torch.tensor([[s.height, s.width] for s in supports]).float().repeat(batch, 1, 1)
        - rng.choice((0.0, 0.5)),
        "background": floats(rng, levels, heads * dim),
    }


def _raw_sampling(rng: Random) -> dict[str, Any]:
    made = _sampling(rng)
    supports = made.pop("supports")
    maps = [support.row_map().clone() for support in supports]
    sizes = [support.num_sites for support in supports]
    return {"rows": made.pop("rows"), "row_maps": maps, "level_sizes": sizes, **made}


def _conv_gradient(rng: Random) -> dict[str, Any]:
    conv = _conv(rng)
    grad = floats(rng, len(conv["table"]), _channels(rng))
    return {
        k: grad if k == "grad" else conv[k]
        for k in ("features", "grad", "table", "row_map", "algorithm")
    }


def _operator_arguments(rng: Random, name: str) -> dict[str, Any]:
    """Arguments that fit an operator."""
    support = _support(rng)
    if name == "sites_of_mask":
        return {"mask": support.mask().clone()}
    if name == "parent_rows":
        return {
            "indices": support.indices.clone(),
            "coarser_row_map": _coarser(support).row_map().clone(),
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
        conv = _conv(rng)
        if rng.random() < 0.2:
            extra["addend"] = floats(rng, len(conv["table"]), len(conv["weight"]))
        return {**conv, **extra}
    if name == "sparse_conv2d_cpu_weight_gradient":
        return _conv_gradient(rng)
    if name == "depthwise_conv2d_cpu":
        return _depthwise(rng)
    if name == "depthwise_conv2d_cpu_weight_gradient":
        made = _depthwise(rng)
        grad = floats(rng, len(made["table"]), made["features"].shape[1])
        return {"features": made["features"], "grad": grad, "table": made["table"]}
    if name in ("sparse_conv2d", "depthwise_conv2d", "sparse_conv2d_spconv"):
        made = _conv(rng) if name.startswith("sparse") else _depthwise(rng)
        return {key: made[key] for key in ("features", "weight", "table")}
    if name == "pointwise_conv_cpu":
        return _pointwise(rng)
    if name == "dense_conv2d_cpu":
        return {**_dense(rng, 3), "algorithm": "auto", "activation": "relu", "addend": None}
    if name in ("deform_attn_cpu", "deform_attn_cpu_backward"):
        made = _raw_sampling(rng)
        if name == "deform_attn_cpu":
            return {**made, "whole_rows": rng.random() < 0.3}
        shape = made["locations"].shape
        return {"grad": floats(rng, *shape[:3], made["rows"].shape[1] // shape[2]), **made}
    if name == "set_costs":
        return {"values": [0.006, 0.0037, 0.0020, 3.7, 10.9, 0.17]}
    return {}


def _pointwise(rng: Random) -> dict[str, Any]:
    count, c_in, c_out = rng.randint(0, 9), _channels(rng), _channels(rng)
    rows = torch.tensor([rng.randrange(4) for _ in range(count)], dtype=torch.int64)
    named = rng.random() < 0.3
    return {
        "features": floats(rng, count, c_in),
        "weight": floats(rng, c_out, c_in),
        "bias": floats(rng, c_out),
        "addend": floats(rng, 4, c_out) if named else None,
        "addend_rows": rows if named else None,
        "activation": rng.choice(("none", "relu")),
    }


def _dense(rng: Random, size: int) -> dict[str, Any]:
    c_in, c_out = rng.choice((1, 3, 32, 40)), rng.choice((1, 3, 32, 40))
    return {
        "x": floats(rng, rng.randint(1, 2), c_in, rng.randint(1, 9), rng.randint(1, 9)),
        "weight": floats(rng, c_out, c_in, size, size),
        "bias": floats(rng, c_out),
    }


def _call(rng: Random, call: Call) -> None:
    function, arguments = call
    changed = changed_arguments(rng, arguments)
    with torch.set_grad_enabled(rng.random() < 0.7):
        result = function(**changed)
        for value in result if isinstance(result, tuple) else (result,):
            if isinstance(value, Tensor) and value.requires_grad and not value.is_meta:
                value.float().sum().backward()


def operator(rng: Random, folder: object) -> None:
    """One call of a registered operator."""
    name = rng.choice(registered())
    operators = torch.ops.sparse_dset
    costs = operators.get_costs() if name == "set_costs" else None
    try:
        _call(rng, (getattr(operators, name), _operator_arguments(rng, name)))
    finally:
        if costs is not None:
            operators.set_costs(costs)


def function(rng: Random, folder: object) -> None:
    """One call of a public function of ``sparse_dset.ops``."""
    _call(rng, rng.choice(_FUNCTIONS)(rng))


def _sparse_conv2d(rng: Random) -> Call:
    support, conv = _support(rng), _conv(rng)
    strided = rng.random() < 0.3
    given = {key: conv[key] for key in ("weight", "bias", "activation")}
    return ops.sparse_conv2d, {
        "features": floats(rng, support.num_sites, conv["weight"].shape[1]),
        **given,
        "support": support,
        "stride": 2 if strided else 1,
        "out_support": _coarser(support) if strided else None,
        "algorithm": rng.choice(("auto", "auto", conv["algorithm"])),
        "backend": rng.choice((*ops.available_backends(), "auto")),
    }


def _depthwise_conv2d(rng: Random) -> Call:
    support, made = _support(rng), _depthwise(rng)
    return ops.depthwise_conv2d, {
        "features": floats(rng, support.num_sites, len(made["weight"])),
        **{key: made[key] for key in ("weight", "bias", "activation")},
        "support": support,
        "stride": 1,
        "backend": rng.choice(("auto", "reference", "cpu")),
    }


def _deform_attn(rng: Random) -> Call:
    made = _sampling(rng)
    value = made.pop("rows")
    return ops.sparse_deform_attn, {
        "value": value,
        **made,
        "backend": rng.choice(("auto", "reference", "cpu")),
    }


def _dense_deform_attn(rng: Random) -> Call:
    made = _sampling(rng)
    channels = made["rows"].shape[1]
    maps = [floats(rng, s.batch_size, channels, s.height, s.width) for s in made["supports"]]
    return ops.dense_deform_attn, {
        "maps": maps,
        **{key: made[key] for key in ("locations", "weights", "extents")},
    }


def _project_and_sample(rng: Random) -> Call:
    made = _sampling(rng)
    channels = made["rows"].shape[1]
    more = {"weight": floats(rng, channels, channels), "bias": floats(rng, channels)}
    return ops.project_and_sample, {**made, **more, "order": rng.choice(("auto", "project_first"))}


def _dense_conv2d(rng: Random) -> Call:
    made = _dense(rng, rng.choice((1, 3, 5)))
    return ops.dense_conv2d, {**made, "stride": rng.choice((1, 2)), "activation": "relu"}


def _rows_conv2d(rng: Random) -> Call:
    support, conv = _support(rng), _conv(rng)
    return ops.rows_conv2d, {
        "rows": floats(rng, support.num_sites, conv["weight"].shape[1]),
        **{key: conv[key] for key in ("weight", "bias", "activation")},
        "support": support,
        "stride": 1,
        "target": support,
    }


def _pointwise_conv(rng: Random) -> Call:
    made = _pointwise(rng)
    return ops.pointwise_conv, {"rows": made.pop("features"), **made}


def _segments(rng: Random) -> Call:
    count, size = rng.randint(0, 9), rng.randint(1, 5)
    index = torch.tensor([rng.randrange(size) for _ in range(count)], dtype=torch.int64)
    call = rng.choice((ops.segment_sum, ops.segment_mean))
    return call, {"values": floats(rng, count, 3), "index": index, "size": size}


def _from_mask(rng: Random) -> Call:
    return Support.from_mask, {"mask": _mask(rng, 2, rng.randint(1, 6), rng.randint(1, 6))}


def _from_indices(rng: Random) -> Call:
    support = _support(rng)
    return Support.from_indices, {
        "indices": support.indices.clone(),
        "batch_size": support.batch_size,
        "height": support.height,
        "width": support.width,
    }


def _use_support(indices: Tensor, batch_size: int, height: int, width: int, size: int) -> None:
    """Makes every table of a support that was built without a check."""
    support = Support(indices, batch_size, height, width)
    support.row_map()
    support.mask()
    support.counts()
    support.neighbors(size)
    support.parents(_coarser(support))


def _raw_support(rng: Random) -> Call:
    return _use_support, {**_from_indices(rng)[1], "size": 3}


def _full(rng: Random) -> Call:
    return Support.full, {"batch_size": 1, "height": rng.randint(1, 5), "width": 3}


def _dense_map(rng: Random) -> Call:
    support = _support(rng)
    kind = rng.choice((SparseMap, MaskedMap))
    return kind.from_dense, {
        "tensor": floats(rng, support.batch_size, 3, *support.shape[1:]),
        "support": support,
    }


def _sparse_map(rng: Random) -> Call:
    support = _support(rng)
    return _use_sparse_map, {"features": floats(rng, support.num_sites, 3), "support": support}


def _use_sparse_map(features: Tensor, support: Support) -> Tensor:
    rows = SparseMap(features, support)
    return (rows + rows).cat(rows).to_dense()


def _nested(rng: Random) -> Call:
    return check_nested, {"masks": [_mask(rng, 1, 8, 8), _mask(rng, 1, 4, 4), _mask(rng, 1, 2, 2)]}


def _ragged(rng: Random) -> Call:
    batch = torch.tensor([rng.randrange(3) for _ in range(rng.randint(0, 7))], dtype=torch.int64)
    return Ragged.from_batch_index, {"batch": batch, "batch_size": 3}


def _select(rng: Random) -> Call:
    batch, queries, classes = rng.randint(1, 2), rng.randint(1, 5), rng.randint(1, 4)
    return select_detections, {
        "pred_logits": floats(rng, batch, queries, classes),
        "pred_boxes": floats(rng, batch, queries, 4).sigmoid(),
        "orig_sizes": torch.tensor([[10, 20]] * batch),
        "max_detections": rng.choice((1, 3, 300)),
        "query_mask": floats(rng, batch, queries) > 0 if rng.random() < 0.5 else None,
    }


def _pad(rng: Random) -> Call:
    count = rng.randint(0, 4)
    return _pad_one, {
        "labels": torch.tensor([rng.randrange(3) for _ in range(count)], dtype=torch.int64),
        "boxes": floats(rng, count, 4).sigmoid() * 0.5 + 0.25,
        "num_classes": 3,
    }


def _pad_one(labels: Tensor, boxes: Tensor, num_classes: int) -> None:
    empty = {"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)}
    pad_targets([{"labels": labels, "boxes": boxes}, empty], num_classes, "cpu")


_FUNCTIONS = (
    _sparse_conv2d, _depthwise_conv2d, _deform_attn, _dense_deform_attn, _project_and_sample,
    _dense_conv2d, _rows_conv2d, _pointwise_conv, _segments,
)  # fmt: skip
_STRUCTURES = (
    _from_mask, _from_indices, _raw_support, _full, _dense_map, _sparse_map, _nested, _ragged,
)  # fmt: skip


def structure(rng: Random, folder: object) -> None:
    """One use of ``sparse_dset.structures``."""
    _call(rng, rng.choice(_STRUCTURES)(rng))


def selection(rng: Random, folder: object) -> None:
    """From logits and boxes to detections."""
    _call(rng, _select(rng))


def targets(rng: Random, folder: object) -> None:
    """Targets of a batch."""
    _call(rng, _pad(rng))
