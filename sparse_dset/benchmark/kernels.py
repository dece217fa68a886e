"""What ``scripts/benchmark.py target=...`` compares on a CPU: parts and wholes, peer by peer."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_dset.benchmark.comparison import PRIME, Comparison
from sparse_dset.benchmark.peers import (
    PEERS,
    NcnnConvolution,
    installed,
)
from sparse_dset.ops import dense_conv2d, sparse_conv2d
from sparse_dset.ops.backends import CPU, REFERENCE, SPCONV
from sparse_dset.structures import SparseMap, Support, enlarged

SHAPES = ((128, 80), (256, 80), (256, 40), (64, 160))
"""(channels, cells of a side) of the convolutions that are compared."""


def ops_cases(keep_ratios: Sequence[float]) -> Iterator[Comparison]:
    """Convolutions 3x3 on aligned 4x4 blocks and on random sites, and a training step of one."""
    for channels, side in SHAPES:
        for kind in ("blocks", "random"):
            for keep in keep_ratios:
                yield _convolution(channels, side, kind, keep)
        yield _training(channels, side, keep=0.3, step=False)
        yield _training(channels, side, keep=0.3, step=True)


def _convolution(channels: int, side: int, kind: str, keep: float) -> Comparison:
    weight = torch.randn(channels, channels, 3, 3) / (9 * channels) ** 0.5
    mask = _mask(side, kind, keep)
    support = Support.from_mask(mask)
    layout, name = _faster_layout(channels, side, weight)
    dense_weight = weight.contiguous(memory_format=layout)

    peer = NcnnConvolution(weight, torch.get_num_threads()) if installed("ncnn") else None

    def make_inputs() -> tuple[Any, ...]:
        x = random_map(channels, side, side) * mask.unsqueeze(1)
        rows = SparseMap.from_dense(x, support).features
        return (
            x,
            x.contiguous(memory_format=layout),
            rows,
            None if peer is None else peer.prepare(x),
        )

    def rows_of(y: Tensor) -> Tensor:
        return SparseMap.from_dense(y, support).features

    arms: dict[str, Callable[..., Tensor | None]] = {
        f"oneDNN dense {name}": lambda _, x, *__: F.conv2d(x, dense_weight, padding=1),
        "our dense": lambda x, *_: dense_conv2d(x, weight, None),
        **_sparse_arms(weight, support),
    }
    if peer is not None:
        arms["ncnn dense"] = lambda *inputs: peer(inputs[-1])

    def comparable(y: Any) -> Tensor:
        if not isinstance(y, Tensor):
            y = NcnnConvolution.as_tensor(y)
        return rows_of(y) if y.dim() == 4 else y

    def expected(x: Tensor, *_: Any) -> Tensor:
        return F.conv2d(x.double(), weight.double(), padding=1)

    pairs = int((support.neighbors() >= 0).sum())
    return Comparison(
        f"conv 3x3 C {channels}, {side}x{side}, {kind}, keep {keep:g}",
        make_inputs,
        arms,
        expected,
        ideal=9 * side * side / max(pairs, 1),
        prime=PRIME,
        comparable=comparable,
        peers=PEERS,
    )


def _sparse_arms(
    weight: Tensor, support: Support
) -> dict[str, Callable[[Tensor, Tensor, Tensor, Any], Tensor]]:
    """Every backend that is here, and every algorithm of the kernels, on the rows of a support."""

    def with_rows(**options: Any) -> Callable[[Tensor, Tensor, Tensor, Any], Tensor]:
        def run(_: Tensor, __: Tensor, rows: Tensor, ___: Any) -> Tensor:
            return sparse_conv2d(rows, weight, None, support, **options)

        return run

    arms = {}
    if not CPU.problem():
        auto = CPU.chosen_algorithm(support, weight.shape[1], weight.shape[0])
        arms[f"sparse auto = {auto}"] = with_rows(backend=CPU)
        for algorithm in CPU.algorithms[1:]:
            arms[f"sparse {algorithm}"] = with_rows(backend=CPU, algorithm=algorithm)
    arms["im2col + matmul"] = with_rows(backend=REFERENCE)
    if not SPCONV.problem():
        arms["spconv Native"] = with_rows(backend=SPCONV)
    return arms


def _training(channels: int, side: int, keep: float, step: bool) -> Comparison:
    """Forward and backward, both gradients.

    Args:
        step: the weights have changed, as after an optimiser's step, and are packed again.
    """
    weight = (torch.randn(channels, channels, 3, 3) / (9 * channels) ** 0.5).requires_grad_()
    support = Support.from_mask(_mask(side, "blocks", keep))
    layout, name = _faster_layout(channels, side, weight.detach())

    def make_inputs() -> tuple[Tensor, Tensor]:
        if step:
            with torch.no_grad():
                weight.mul_(1.0)
        x = random_map(channels, side, side).contiguous(memory_format=layout)
        rows = SparseMap.from_dense(x, support).features
        return x.requires_grad_(), rows.requires_grad_()

    def both_ways(convolve: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., None]:
        def run(x: Tensor, rows: Tensor) -> None:
            with torch.enable_grad():
                y = convolve(x, rows)
                torch.autograd.grad(
                    y, [t for t in (x, rows) if t.requires_grad] + [weight], y, allow_unused=True
                )

        return run

    pairs = int((support.neighbors() >= 0).sum())
    return Comparison(
        f"forward + backward{', new weights' if step else ''} C {channels}, {side}x{side}, blocks, "
        f"keep {keep:g}",
        make_inputs,
        {
            f"oneDNN dense {name}": both_ways(lambda x, _: F.conv2d(x, weight, padding=1)),
            "sparse auto": both_ways(lambda _, rows: sparse_conv2d(rows, weight, None, support)),
        },
        peers=PEERS,
        ideal=9 * side * side / pairs,
        prime=0 if step else PRIME,  # a primed call would pack the new weights
    )


def _mask(side: int, kind: str, keep: float) -> Tensor:
    if kind == "random":
        return some_cells(1, side, side, keep)
    blocks = some_cells(1, side // 4, side // 4, keep)
    return enlarged(blocks, 4)


def random_map(channels: int, height: int, width: int) -> Tensor:
    """A map of normal numbers in channels-last memory."""
    x = torch.randn(1, channels, height, width)
    return x.contiguous(memory_format=torch.channels_last)


def _faster_layout(channels: int, side: int, weight: Tensor) -> tuple[torch.memory_format, str]:
    """The memory format in which PyTorch's dense convolution is faster here."""
    medians = {}
    for name, layout in (("nchw", torch.contiguous_format), ("nhwc", torch.channels_last)):
        x = torch.randn(1, channels, side, side).contiguous(memory_format=layout)
        laid_out, times = weight.contiguous(memory_format=layout), []
        for _ in range(8):
            start = time.perf_counter()
            F.conv2d(x, laid_out, padding=1)
            times.append(time.perf_counter() - start)
        medians[statistics.median(times[3:])] = (layout, name)
    return medians[min(medians)]


def some_cells(batch: int, height: int, width: int, keep: float) -> Tensor:
    """Cells of which a share is kept, at random."""
    order = torch.randperm(batch * height * width)
    return (order < round(keep * len(order))).view(batch, height, width)
