"""Arguments that fit, from a random state; the callers change some of them."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import torch
from torch import Tensor

from sparse_dset.fuzz.mutate import changed_arguments
from sparse_dset.structures import Support

Call = tuple[Callable[..., Any], dict[str, Any]]


def floats(rng: Random, *shape: int) -> Tensor:
    """Normal numbers that follow from the random state."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(rng.randrange(2**31)))


def draw_mask(rng: Random, batch: int, height: int, width: int) -> Tensor:
    """Kept cells; sometimes none, sometimes all."""
    return floats(rng, batch, height, width) < rng.choice((-9.0, -0.5, 0.5, 9.0))


def draw_support(rng: Random) -> Support:
    """Kept sites of a small grid."""
    return Support.from_mask(
        draw_mask(rng, rng.randint(1, 2), rng.randint(1, 9), rng.randint(1, 9))
    )


def coarser(support: Support) -> Support:
    """All sites of the grid with half the sides."""
    shape = support.batch_size, (support.height + 1) // 2, (support.width + 1) // 2
    return Support.full(*shape)


def draw_channels(rng: Random) -> int:
    """A number of channels, odd ones too."""
    return rng.choice((1, 2, 3, 8, 17, 32, 33))


def conv_arguments(rng: Random) -> dict[str, Any]:
    """Arguments of the 3x3 convolution kernel."""
    support, c_in, c_out = draw_support(rng), draw_channels(rng), draw_channels(rng)
    strided = rng.random() < 0.3
    target = coarser(support) if strided else support
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


def depthwise_arguments(rng: Random) -> dict[str, Any]:
    """Arguments of the depthwise kernel."""
    support, size, channels = draw_support(rng), rng.choice((1, 3, 5, 7)), draw_channels(rng)
    return {
        "features": floats(rng, support.num_sites, channels),
        "weight": floats(rng, channels, 1, size, size),
        "bias": floats(rng, channels) if rng.random() < 0.5 else None,
        "table": support.neighbors(size).clone(),
        "activation": rng.choice(("none", "relu", "silu")),
    }


def sampling_arguments(rng: Random) -> dict[str, Any]:
    """Arguments of deformable attention."""
    batch, queries, heads = rng.randint(1, 2), rng.randint(1, 5), rng.choice((1, 2, 4))
    levels, points, dim = rng.randint(1, 3), rng.randint(1, 3), rng.choice((1, 3, 8))
    supports = [
        Support.from_mask(draw_mask(rng, batch, rng.randint(1, 6), rng.randint(1, 6)))
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


def pointwise_arguments(rng: Random) -> dict[str, Any]:
    """Arguments of a linear layer on rows."""
    count, c_in, c_out = rng.randint(0, 9), draw_channels(rng), draw_channels(rng)
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


def dense_arguments(rng: Random, size: int) -> dict[str, Any]:
    """Arguments of a convolution of maps."""
    c_in, c_out = rng.choice((1, 3, 32, 40)), rng.choice((1, 3, 32, 40))
    return {
        "x": floats(rng, rng.randint(1, 2), c_in, rng.randint(1, 9), rng.randint(1, 9)),
        "weight": floats(rng, c_out, c_in, size, size),
        "bias": floats(rng, c_out),
    }


def perform_call(rng: Random, call: Call) -> None:
    """Calls with some arguments changed, and asks for gradients where there are some."""
    function, arguments = call
    changed = changed_arguments(rng, arguments)
    with torch.set_grad_enabled(rng.random() < 0.7):
        result = function(**changed)
        for value in result if isinstance(result, tuple) else (result,):
            if isinstance(value, Tensor) and value.requires_grad and not value.is_meta:
                value.float().sum().backward()
