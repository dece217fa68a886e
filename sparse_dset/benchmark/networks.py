"""Networks and their parts, against the same in other libraries."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_dset.benchmark.comparison import PRIME, Comparison
from sparse_dset.benchmark.kernels import random_map, some_cells
from sparse_dset.benchmark.peers import (
    PEERS,
    RUNTIMES,
    cross_attentions,
    installed,
)
from sparse_dset.config import build_criterion
from sparse_dset.models.detector import Detector
from sparse_dset.models.export import export_onnx
from sparse_dset.ops import (
    dense_deform_attn,
    project_and_sample,
)
from sparse_dset.ops.backends import AUTO, REFERENCE, resolve_backend, use_backend
from sparse_dset.structures import SparseMap, Support, enlarged, map_to_rows, rows_to_map

WITH_PEER = ("r18", "r50", "lite0")
"""Models that Hugging Face's RT-DETRv2 can be built like."""


def neck_cases(model: Detector, name: str, keep_ratios: Sequence[float]) -> Iterator[Comparison]:
    """The neck in its inference form; sparse arms make their tables within the time."""
    model.fuse()
    height, width = (size // 32 for size in model.image_size)
    channels = cross_attentions(model)[0].value_proj.in_features
    for keep in keep_ratios:
        masks = _nested_masks(height, width, keep)

        def make_inputs(masks: list[Tensor] = masks) -> tuple[Any, ...]:
            maps = [random_map(channels, *mask.shape[1:]) * mask.unsqueeze(1) for mask in masks]
            rows = [
                SparseMap.from_dense(m, Support.from_mask(mask)).features
                for m, mask in zip(maps, masks, strict=True)
            ]
            return maps, rows

        def onednn(maps: list[Tensor], rows: list[Tensor]) -> None:
            with use_backend(REFERENCE):
                model.encoder.merge_levels(maps)

        def dense(maps: list[Tensor], rows: list[Tensor]) -> None:
            model.encoder.merge_levels(maps)

        def sparse(maps: list[Tensor], rows: list[Tensor], masks: list[Tensor] = masks) -> None:
            tables = resolve_backend(AUTO, rows[0].device).tables
            supports = [Support.from_mask(mask, tables) for mask in masks]
            model.encoder.merge_levels(
                [SparseMap(r, s) for r, s in zip(rows, supports, strict=True)]
            )

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
            maps = [random_map(channels, *mask.shape[1:]) * mask.unsqueeze(1) for mask in masks]
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
    criterion = build_criterion()
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
                torch.stack(list(criterion(out, targets).values())).sum().backward()
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


def _nested_masks(height: int, width: int, keep: float) -> list[Tensor]:
    """A decision at stride 32 and what finer levels inherit, finest first."""
    coarse = some_cells(1, height, width, keep)
    return [enlarged(coarse, f) for f in (4, 2, 1)]
