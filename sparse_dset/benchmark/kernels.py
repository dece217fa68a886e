"""What ``scripts/benchmark.py target=...`` compares on a CPU: parts and wholes, peer by peer."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_dset import native
from sparse_dset.benchmark.comparison import Comparison
from sparse_dset.benchmark.peers import (
    NcnnConvolution,
    cross_attentions,
    installed,
    onnxruntime_network,
    openvino_network,
)
from sparse_dset.models.detector import Detector
from sparse_dset.models.export import export_onnx
from sparse_dset.ops import (
    available_backends,
    dense_conv2d,
    dense_deform_attn,
    project_and_sample,
    sparse_conv2d,
    use_backend,
)
from sparse_dset.ops.cpu import chosen_algorithm
from sparse_dset.structures import SparseMap, Support, enlarged, map_to_rows, rows_to_map

SHAPES = ((128, 80), (256, 80), (256, 40), (64, 160))
"""(channels, cells of a side) of the convolutions that are compared."""

WITH_PEER = ("r18", "r50", "lite0")
"""Models that Hugging Face's RT-DETRv2 can be built like."""

RUNTIMES = (
    ("ONNX Runtime", "onnxruntime", onnxruntime_network),
    ("OpenVINO", "openvino", openvino_network),
)
"""Title, package, and what runs an exported network."""

PEERS = frozenset(
    {
        *("Hugging Face", "Hugging Face eager", "Hugging Face compiled"),
        *(title for title, _, _ in RUNTIMES),
        *("oneDNN dense", "oneDNN dense nchw", "oneDNN dense nhwc", "value_proj + grid_sample"),
        *("spconv Native", "ncnn dense"),
    }
)
"""Arms that other libraries compute."""

PRIME = 3
"""Parts are timed as in a loop over them, their operands near; only whole networks bring their own
neighbours."""


def ops_cases(keep_ratios: Sequence[float]) -> Iterator[Comparison]:
    """Convolutions 3x3 on aligned 4x4 blocks and on random sites, and a training step of one."""
    for channels, side in SHAPES:
        for kind in ("blocks", "random"):
            for keep in keep_ratios:
                yield _convolution(channels, side, kind, keep)
        yield _training(channels, side, keep=0.3, step=False)
        yield _training(channels, side, keep=0.3, step=True)


def neck_cases(model: Detector, name: str, keep_ratios: Sequence[float]) -> Iterator[Comparison]:
    """The neck in its inference form; sparse arms make their tables within the time."""
    model.fuse()
    height, width = (size // 32 for size in model.image_size)
    channels = cross_attentions(model)[0].value_proj.in_features
    for keep in keep_ratios:
        masks = _nested_masks(height, width, keep)

        def make_inputs(masks: list[Tensor] = masks) -> tuple[Any, ...]:
            maps = [_random_map(channels, *mask.shape[1:]) * mask.unsqueeze(1) for mask in masks]
            rows = [
                SparseMap.from_dense(m, Support.from_mask(mask)).features
                for m, mask in zip(maps, masks, strict=True)
            ]
            return maps, rows

        def onednn(maps: list[Tensor], rows: list[Tensor]) -> None:
            with use_backend("reference"):
                model.encoder.fuse(maps)

        def dense(maps: list[Tensor], rows: list[Tensor]) -> None:
            model.encoder.fuse(maps)

        def sparse(maps: list[Tensor], rows: list[Tensor], masks: list[Tensor] = masks) -> None:
            supports = [Support.from_mask(mask) for mask in masks]
            model.encoder.fuse([SparseMap(r, s) for r, s in zip(rows, supports, strict=True)])

        arms = {"oneDNN dense": onednn, "our dense": dense, "sparse": sparse}
        case = f"neck of {name}, keep {keep:g}"
        yield Comparison(case, make_inputs, arms, prime=PRIME, peers=PEERS)


def decoder_cases(model: Detector, name: str, keep_ratios: Sequence[float]) -> Iterator[Comparison]:
    """The core of deformable attention: values projected and sampled."""
    attention = cross_attentions(model)[0]
    weight, bias = attention.value_proj.weight, attention.value_proj.bias
    heads, points = attention.num_heads, attention.num_points
    channels, queries = attention.value_proj.in_features, model.decoder.num_queries
    height, width = (size // 32 for size in model.image_size)
    extents = torch.tensor([[[height * f, width * f] for f in (4.0, 2.0, 1.0)]])
    for keep in keep_ratios:
        masks = _nested_masks(height, width, keep)
        supports = [Support.from_mask(mask) for mask in masks]

        def make_inputs(
            masks: list[Tensor] = masks, supports: list[Support] = supports
        ) -> tuple[Any, ...]:
            maps = [_random_map(channels, *mask.shape[1:]) * mask.unsqueeze(1) for mask in masks]
            rows = torch.cat(
                [SparseMap.from_dense(m, s).features for m, s in zip(maps, supports, strict=True)]
            )
            center, size = torch.rand(1, queries, 1, 1, 1, 2), torch.rand(1, queries, 1, 1, 1, 2)
            offsets = torch.randn(1, queries, heads, 3, points, 2)
            locations = center + 0.1 * size * offsets
            weights = torch.rand(1, queries, heads, 3 * points).softmax(-1)
            return maps, rows, locations, weights.view(1, queries, heads, 3, points)

        def dense(maps: list[Tensor], _: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
            rows = torch.cat([map_to_rows(m) for m in maps])
            values = F.linear(rows, weight, bias).split([m[0, 0].numel() for m in maps])
            projected = [rows_to_map(v, 1, *m.shape[2:]) for v, m in zip(values, maps, strict=True)]
            return dense_deform_attn(projected, locations, weights, extents)

        def ours(
            _: Any,
            rows: Tensor,
            locations: Tensor,
            weights: Tensor,
            order: str = "auto",
            supports: list[Support] = supports,
        ) -> Tensor:
            return project_and_sample(
                rows,
                weight,
                bias,
                supports,
                locations,
                weights,
                extents,
                order=order,
            )

        arms: dict[str, Callable[..., Tensor]] = {"value_proj + grid_sample": dense, "ours": ours}
        for order in ("project_first", "sample_first"):
            arms[order] = lambda *inputs, order=order, ours=ours: ours(*inputs, order=order)
        case = f"deformable attention of {name}, keep {keep:g}"
        yield Comparison(case, make_inputs, arms, prime=PRIME, peers=PEERS)


def peer_cases(
    model: Detector, name: str, keep_ratios: Sequence[float], compiled: bool = False
) -> Iterator[Comparison]:
    """The whole detector against the same network in other libraries, weights alike for ResNets.

    Raises:
        ValueError: the other libraries have no such network.
    """
    if name not in WITH_PEER:
        raise ValueError(f"target=peers compares model={', '.join(WITH_PEER)}; got {name}")
    from sparse_dset.benchmark import hugging_face

    peer = hugging_face.build_peer(name)
    alike = name != "lite0"
    if alike:
        model.load_rtdetr(hugging_face.released_names(peer))
    model.fuse()
    images = torch.rand(1, 3, *model.image_size)

    def best(logits: Tensor) -> Tensor | None:
        """Scores in order: queries have none of their own."""
        return logits.sort(dim=1).values if alike else None

    def ours(execution: str, keep: float) -> Callable[[Tensor], Tensor | None]:
        def run(x: Tensor) -> Tensor | None:
            out = model(x, execution=execution, keep_ratio=keep)
            return best(out.pred_logits) if keep == 1.0 else None

        return run

    def exported(run: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Callable[[Tensor], Any]:
        return lambda x: best(run(x)[0])

    arms: dict[str, Callable[[Tensor], Tensor | None]] = {
        "Hugging Face eager": lambda x: best(peer(pixel_values=x).logits),
        "our dense": ours("dense", 1.0),
    }
    if compiled:
        fast = torch.compile(peer)
        arms["Hugging Face compiled"] = lambda x: best(fast(pixel_values=x).logits)
    arms |= {f"sparse {keep:g}": ours("sparse", keep) for keep in keep_ratios}
    with tempfile.TemporaryDirectory() as folder:
        if installed("onnx"):
            path = Path(folder, "dense.onnx")
            export_onnx(model, path)
            for title, package, network in RUNTIMES:
                if installed(package):
                    arms[title] = exported(network(path, torch.get_num_threads()))
        yield Comparison(
            f"{name}, {model.image_size[0]}x{model.image_size[1]}",
            lambda: (torch.rand_like(images),),
            arms,
            tolerance=1e-3,
            peers=PEERS,
            pruned=[f"sparse {keep:g}" for keep in keep_ratios if keep < 1.0],
        )


def training_cases(
    model: Detector, name: str, keep_ratios: Sequence[float], batch_size: int
) -> Iterator[Comparison]:
    """Forward and backward passes of the whole detector, and of Hugging Face's where there is one.

    Every image has 16 objects; no optimiser's step is taken.
    """
    model.train()
    targets = [
        {
            "labels": torch.randint(model.num_classes, (16,)),
            "boxes": torch.cat([0.1 + 0.8 * torch.rand(16, 2), 0.02 + 0.1 * torch.rand(16, 2)], 1),
        }
        for _ in range(batch_size)
    ]

    def ours(execution: str, keep: float) -> Callable[[Tensor], None]:
        def run(x: Tensor) -> None:
            with torch.enable_grad():
                out = model(x, targets, execution=execution, keep_ratio=keep)
                torch.stack(list(out.losses.values())).sum().backward()
            model.zero_grad()

        return run

    arms = {"our dense": ours("dense", 1.0)}
    arms |= {f"sparse {keep:g}": ours("sparse", keep) for keep in keep_ratios}
    if name in WITH_PEER and installed("transformers"):
        from sparse_dset.benchmark import hugging_face

        peer = hugging_face.build_peer(name)
        peer.train()
        labels = [{"class_labels": t["labels"], "boxes": t["boxes"]} for t in targets]

        def theirs(x: Tensor) -> None:
            with torch.enable_grad():
                peer(pixel_values=x, labels=labels).loss.backward()
            peer.zero_grad()

        arms = {"Hugging Face": theirs, **arms}
    yield Comparison(
        f"training step of {name}, {batch_size} images of "
        f"{model.image_size[0]}x{model.image_size[1]}",
        lambda: (torch.rand(batch_size, 3, *model.image_size),),
        arms,
        peers=PEERS,
        pruned=[f"sparse {keep:g}" for keep in keep_ratios if keep < 1.0],
        trains=True,
    )


def _convolution(channels: int, side: int, kind: str, keep: float) -> Comparison:
    weight = torch.randn(channels, channels, 3, 3) / (9 * channels) ** 0.5
    mask = _mask(side, kind, keep)
    support = Support.from_mask(mask)
    layout, name = _faster_layout(channels, side, weight)
    dense_weight = weight.contiguous(memory_format=layout)

    peer = NcnnConvolution(weight, torch.get_num_threads()) if installed("ncnn") else None

    def make_inputs() -> tuple[Any, ...]:
        x = _random_map(channels, side, side) * mask.unsqueeze(1)
        rows = SparseMap.from_dense(x, support).features
        return (
            x,
            x.contiguous(memory_format=layout),
            rows,
            None if peer is None else peer.prepare(x),
        )

    def rows_of(y: Tensor) -> Tensor:
        return SparseMap.from_dense(y, support).features

    def with_rows(**options: str) -> Callable[..., Tensor]:
        def run(_: Tensor, __: Tensor, rows: Tensor, ___: Any) -> Tensor:
            return sparse_conv2d(rows, weight, None, support, **options)  # type: ignore[arg-type]

        return run

    arms: dict[str, Callable[..., Tensor | None]] = {
        f"oneDNN dense {name}": lambda _, x, *__: F.conv2d(x, dense_weight, padding=1),
        "our dense": lambda x, *_: dense_conv2d(x, weight, None),
    }
    if not native.unavailable_reason():
        auto = chosen_algorithm(support, channels, channels)
        arms[f"sparse auto = {auto}"] = with_rows(backend="cpu")
        for algorithm in ("indirect", "winograd2", "winograd4"):
            arms[f"sparse {algorithm}"] = with_rows(backend="cpu", algorithm=algorithm)
    arms["im2col + matmul"] = with_rows(backend="reference")
    if "spconv" in available_backends():
        arms["spconv Native"] = with_rows(backend="spconv")
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
        x = _random_map(channels, side, side).contiguous(memory_format=layout)
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
        return _some(1, side, side, keep)
    blocks = _some(1, side // 4, side // 4, keep)
    return enlarged(blocks, 4)


def _nested_masks(height: int, width: int, keep: float) -> list[Tensor]:
    """A decision at stride 32 and what finer levels inherit, finest first."""
    coarse = _some(1, height, width, keep)
    return [enlarged(coarse, f) for f in (4, 2, 1)]


def _some(batch: int, height: int, width: int, keep: float) -> Tensor:
    order = torch.randperm(batch * height * width)
    return (order < round(keep * len(order))).view(batch, height, width)


def _random_map(channels: int, height: int, width: int) -> Tensor:
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
