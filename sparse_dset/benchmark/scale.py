"""How cost grows with the size of the image where the number of objects stays the same."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from sparse_dset.benchmark.plot import save_figure
from sparse_dset.benchmark.table import Table
from sparse_dset.benchmark.timing import measure_latency, milliseconds
from sparse_dset.engine.loggers import environment
from sparse_dset.models.detector import Detector
from sparse_dset.models.executions import find_execution


def on_canvas(image: Tensor, width: int) -> Tensor:
    """Surrounds a picture with its own colours, blurred until no object is left.

    Args:
        image: ``[3, h, w]`` in [0, 1].
        width: of the canvas, at least w; its height keeps the proportions, in multiples of 32.

    Returns:
        ``[3, height, width]`` with the picture, pixel by pixel, in the middle.
    """
    _, h, w = image.shape
    height = round(h * width / w / 32) * 32
    if width < w or height < h:
        raise ValueError(f"a canvas {width} wide is smaller than the picture, {w} x {h} pixels")
    colours = F.interpolate(image[None], (3, 5), mode="area")
    canvas = F.interpolate(colours, (height, width), mode="bicubic", align_corners=False)[0]
    top, left = (height - h) // 2, (width - w) // 2
    canvas = canvas.clamp(0.0, 1.0)
    canvas[:, top : top + h, left : left + w] = image
    return canvas


def fit_exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Returns the exponent a of the power law c * size^a that fits best, in logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


@torch.no_grad()
def measure_scale(
    model: Detector,
    image: Tensor,
    widths: Sequence[int],
    executions: Sequence[str],
    *,
    keep_ratio: float | None = None,
    warmup: int = 2,
    repeats: int = 7,
) -> Iterator[dict[str, Any]]:
    """Times executions of the inference form on one picture on canvases of several widths.

    Args:
        model: left as it was; how many tokens it keeps should follow the content.
        image: ``[3, h, w]`` in [0, 1].
        widths: of the canvases.
        executions: of the detector, timed in turns.
        keep_ratio: see ``Detector.forward``.

    Yields:
        A row per width and execution, as soon as it is measured: ``width``, ``pixels``,
        ``execution``, ``kept_cells`` (of stride 32), ``latency_ms`` and how it was measured.
    """
    fused = copy.deepcopy(model).eval().fuse()
    for width in widths:
        images = on_canvas(image, width)[None]
        options = {name: keep_ratio if find_execution(name).prunes else None for name in executions}
        calls = {
            name: partial(fused, images, execution=name, keep_ratio=ratio)
            for name, ratio in options.items()
        }
        kept = {name: int(call().num_kept[0, -1]) for name, call in calls.items()}
        times = measure_latency(calls, warmup=warmup, repeats=repeats, synchronize=lambda: None)
        for name in executions:
            yield {
                "kind": "scale",
                "width": width,
                "pixels": images[0, 0].numel(),
                "execution": name,
                "keep_ratio": options[name],
                "kept_cells": kept[name],
                "latency_ms": milliseconds(times[name]),
                "warmup": warmup,
                "repeats": repeats,
                "environment": environment(),
            }


def summarize(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns per execution that was timed at two sizes or more: ``exponent``, ``growth`` (last
    time over first), and ``ms_per_megapixel``, what each further megapixel costs."""
    found = []
    for name in dict.fromkeys(row["execution"] for row in rows):
        own = sorted(
            (r["pixels"], r["latency_ms"]["median"]) for r in rows if r["execution"] == name
        )
        pixels, times = zip(*own, strict=True)
        if pixels[0] == pixels[-1]:
            continue
        more = (times[-1] - times[0]) / (pixels[-1] - pixels[0]) * 1e6
        found.append(
            {
                "execution": name,
                "exponent": fit_exponent(pixels, times),
                "growth": times[-1] / times[0],
                "ms_per_megapixel": more,
            }
        )
    return found


def measured_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Returns a table with a line per width and execution."""
    lines = [
        [str(r["width"]), r["execution"], str(r["kept_cells"]), f"{r['latency_ms']['median']:.1f}"]
        for r in rows
    ]
    return Table(["width", "execution", "kept cells", "ms"], lines)


def summary_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Returns a table with a line per execution: how its time grows."""
    lines = [
        [
            one["execution"],
            f"{one['growth']:.2f}x",
            f"{one['exponent']:.2f}",
            f"{one['ms_per_megapixel']:.1f}",
        ]
        for one in summarize(rows)
    ]
    header = ["execution", "time grows by", "exponent of pixels", "ms per further megapixel"]
    return Table(header, lines)


def plot_scale(rows: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Draws time against pixels, both logarithmic."""
    save_figure(scale_figure(rows), path)


def scale_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Returns the figure of `plot_scale`."""
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.subplots()
    exponents = {one["execution"]: one["exponent"] for one in summarize(rows)}
    for name in dict.fromkeys(row["execution"] for row in rows):
        own = sorted(
            (row for row in rows if row["execution"] == name), key=lambda row: row["pixels"]
        )
        label = f"{name}: pixels^{exponents[name]:.2f}" if name in exponents else name
        axes.loglog(
            [r["pixels"] / 1e6 for r in own],
            [r["latency_ms"]["median"] for r in own],
            marker="o",
            label=label,
        )
    axes.set_xlabel("megapixels")
    axes.set_ylabel("latency of a forward pass (ms)")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    return figure
