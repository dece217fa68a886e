"""Calls of the public functions and structures of the package."""

from __future__ import annotations

from random import Random

import torch
from torch import Tensor

from sparse_dset import ops
from sparse_dset.fuzz.arguments import (
    Call,
    coarser,
    conv_arguments,
    dense_arguments,
    depthwise_arguments,
    draw_mask,
    draw_support,
    floats,
    perform_call,
    pointwise_arguments,
    sampling_arguments,
)
from sparse_dset.models.postprocess import select_detections
from sparse_dset.structures import MaskedMap, SparseMap, Support, check_nested
from sparse_dset.structures.ragged import Ragged
from sparse_dset.structures.targets import pad_targets


def _sparse_conv2d(rng: Random) -> Call:
    support, conv = draw_support(rng), conv_arguments(rng)
    strided = rng.random() < 0.3
    given = {key: conv[key] for key in ("weight", "bias", "activation")}
    return ops.sparse_conv2d, {
        "features": floats(rng, support.num_sites, conv["weight"].shape[1]),
        **given,
        "support": support,
        "stride": 2 if strided else 1,
        "out_support": coarser(support) if strided else None,
        "algorithm": rng.choice(("auto", "auto", conv["algorithm"])),
        "backend": rng.choice((*ops.available_backends(), "auto")),
    }


def _depthwise_conv2d(rng: Random) -> Call:
    support, made = draw_support(rng), depthwise_arguments(rng)
    return ops.depthwise_conv2d, {
        "features": floats(rng, support.num_sites, len(made["weight"])),
        **{key: made[key] for key in ("weight", "bias", "activation")},
        "support": support,
        "stride": 1,
        "backend": rng.choice(("auto", "reference", "cpu")),
    }


def _deform_attn(rng: Random) -> Call:
    made = sampling_arguments(rng)
    value = made.pop("rows")
    return ops.sparse_deform_attn, {
        "value": value,
        **made,
        "backend": rng.choice(("auto", "reference", "cpu")),
    }


def _dense_deform_attn(rng: Random) -> Call:
    made = sampling_arguments(rng)
    channels = made["rows"].shape[1]
    maps = [floats(rng, s.batch_size, channels, s.height, s.width) for s in made["supports"]]
    return ops.dense_deform_attn, {
        "maps": maps,
        **{key: made[key] for key in ("locations", "weights", "extents")},
    }


def _project_and_sample(rng: Random) -> Call:
    made = sampling_arguments(rng)
    channels = made["rows"].shape[1]
    more = {"weight": floats(rng, channels, channels), "bias": floats(rng, channels)}
    return ops.project_and_sample, {**made, **more, "order": rng.choice(("auto", "project_first"))}


def _dense_conv2d(rng: Random) -> Call:
    made = dense_arguments(rng, rng.choice((1, 3, 5)))
    return ops.dense_conv2d, {**made, "stride": rng.choice((1, 2)), "activation": "relu"}


def _rows_conv2d(rng: Random) -> Call:
    support, conv = draw_support(rng), conv_arguments(rng)
    return ops.rows_conv2d, {
        "rows": floats(rng, support.num_sites, conv["weight"].shape[1]),
        **{key: conv[key] for key in ("weight", "bias", "activation")},
        "support": support,
        "stride": 1,
        "target": support,
    }


def _pointwise_conv(rng: Random) -> Call:
    made = pointwise_arguments(rng)
    return ops.pointwise_conv, {"rows": made.pop("features"), **made}


def _segments(rng: Random) -> Call:
    count, size = rng.randint(0, 9), rng.randint(1, 5)
    index = torch.tensor([rng.randrange(size) for _ in range(count)], dtype=torch.int64)
    call = rng.choice((ops.segment_sum, ops.segment_mean))
    return call, {"values": floats(rng, count, 3), "index": index, "size": size}


def _from_mask(rng: Random) -> Call:
    return Support.from_mask, {"mask": draw_mask(rng, 2, rng.randint(1, 6), rng.randint(1, 6))}


def _from_indices(rng: Random) -> Call:
    support = draw_support(rng)
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
    support.parents(coarser(support))


def _raw_support(rng: Random) -> Call:
    return _use_support, {**_from_indices(rng)[1], "size": 3}


def _full(rng: Random) -> Call:
    return Support.full, {"batch_size": 1, "height": rng.randint(1, 5), "width": 3}


def _dense_map(rng: Random) -> Call:
    support = draw_support(rng)
    kind = rng.choice((SparseMap, MaskedMap))
    return kind.from_dense, {
        "tensor": floats(rng, support.batch_size, 3, *support.shape[1:]),
        "support": support,
    }


def _sparse_map(rng: Random) -> Call:
    support = draw_support(rng)
    return _use_sparse_map, {"features": floats(rng, support.num_sites, 3), "support": support}


def _use_sparse_map(features: Tensor, support: Support) -> Tensor:
    rows = SparseMap(features, support)
    return (rows + rows).cat(rows).to_dense()


def _nested(rng: Random) -> Call:
    return check_nested, {
        "masks": [draw_mask(rng, 1, 8, 8), draw_mask(rng, 1, 4, 4), draw_mask(rng, 1, 2, 2)]
    }


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
    perform_call(rng, rng.choice(_STRUCTURES)(rng))


def selection(rng: Random, folder: object) -> None:
    """From logits and boxes to detections."""
    perform_call(rng, _select(rng))


def targets(rng: Random, folder: object) -> None:
    """Targets of a batch."""
    perform_call(rng, _pad(rng))


def function(rng: Random, folder: object) -> None:
    """One call of a public function of ``sparse_dset.ops``."""
    perform_call(rng, rng.choice(_FUNCTIONS)(rng))
