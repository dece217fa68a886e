"""A figure of result rows: what pruning costs in accuracy, and what it saves."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from sparse_dset.benchmark.table import (
    LEVELS,
    Row,
    arm_name,
    by_part,
    kept_shares,
    latest,
    with_rest,
)
from sparse_dset.files import atomic_write
from sparse_dset.models.executions import find_execution

_Point = tuple[float, float, Row]


@dataclass(frozen=True)
class _Style:
    """How an execution looks; ``label_at`` is where its keep ratios stand, in points."""

    color: str
    marker: str
    label_at: tuple[int, int] = (8, -8)


# Okabe and Ito's palette, which colour-blind readers can tell apart.
_STYLES = {
    "dense": _Style("#000000", "*"),
    "dense_scatter": _Style("#D55E00", "s", label_at=(-8, -5)),
    "sparse": _Style("#0072B2", "o"),
    "masked": _Style("#009E73", "^"),
    "auto": _Style("#CC79A7", "D"),
}
PART_COLORS = {
    "backbone": "#999999",
    "pruner": "#CC79A7",
    "encoder": "#E69F00",
    "neck": "#56B4E9",
    "decoder": "#009E73",
    "rest": "#DDDDDD",
}
"""Of the parts of a detector, in the order in which they run."""

_LABELS = {
    "AP": "AP (%)",
    "gflops": "GFLOPs per image",
    "latency": "latency of a forward pass (ms)",
    "keep_ratio": "keep ratio asked",
}
_VALUES: dict[str, Callable[[Row], float | None]] = {
    "AP": lambda row: _percent((row.get("metrics") or {}).get("AP")),
    "gflops": lambda row: row["gflops"]["total"],
    "latency": lambda row: row["latency_ms"]["median"],
    "keep_ratio": lambda row: row["keep_ratio"],
}


def save_figure(figure: Figure, path: str | Path) -> None:
    """Draws a figure into a file whose ending says the format; see `atomic_write`."""
    with atomic_write(path) as file:
        figure.savefig(file, dpi=150, format=Path(path).suffix.removeprefix("."))


def plot_results(rows: Sequence[Row], path: str | Path, *, title: str = "") -> None:
    """Draws AP against GFLOPs and against latency; without AP, both against the keep ratio.

    Each execution is a line with a point per keep ratio; ``dense`` is a star and a level line.

    Args:
        rows: of `measure`, perhaps with the ``metrics`` of `evaluate`; a later row of the same
            execution and keep ratio replaces an earlier one.
        path: the picture to write (png, pdf or svg, by its ending).
        title: over both panels.

    Raises:
        ValueError: no rows.
    """
    figure = results_figure(rows, title=title)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_figure(figure, path)


def results_figure(rows: Sequence[Row], *, title: str = "") -> Figure:
    """Returns the figure of `plot_results`."""
    if not rows:
        raise ValueError("a plot needs at least one row")
    rows = latest(rows)
    with_ap = any(_VALUES["AP"](row) is not None for row in rows)
    panels = [("gflops", "AP"), ("latency", "AP")]
    if not with_ap:
        panels = [("keep_ratio", "gflops"), ("keep_ratio", "latency")]
    # A figure of its own, not pyplot's: no display and no global state.
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    for axes, (x, y) in zip(figure.subplots(1, 2), panels, strict=True):
        _draw_panel(axes, rows, x, y)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles,
        names,
        title="numbers beside the points: keep ratio; the line: no row is better and cheaper"
        if with_ap
        else None,
        loc="outside lower center",
        ncols=len(names),
        frameon=False,
    )
    if title:
        figure.suptitle(title, fontsize=11, parse_math=False)
    return figure


def kept_figure(rows: Sequence[Row], execution: str) -> Figure:
    """Returns a figure of the share of tokens that is kept on each level, over that asked for."""
    own = [row for row in latest(rows) if row["execution"] == execution]
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.subplots()
    asked = [row["keep_ratio"] for row in own]
    axes.plot([0, 1], [0, 100], color="0.8", linewidth=1, zorder=1)
    for level, color, marker in zip(LEVELS, ("#56B4E9", "#0072B2", "#D55E00"), "^so", strict=True):
        shares = [100 * kept_shares(row).get(level, math.nan) for row in own]
        label = f"{level}, stride {8 << LEVELS.index(level)}"
        axes.plot(asked, shares, color=color, marker=marker, label=label)
    axes.set_xlabel("keep ratio asked")
    axes.set_ylabel("tokens kept (%)")
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 104)
    axes.grid(color="0.9", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def parts_figure(rows: Sequence[Row]) -> Figure:
    """Returns a figure of GFLOPs and of milliseconds, part by part, a bar per row of `measure`."""
    rows = latest(rows)
    figure = Figure(figsize=(max(7.0, 1.1 * len(rows)), 6.4), layout="constrained")
    upper, lower = figure.subplots(2, 1)
    names = [arm_name(row) for row in rows]
    draw_bars(upper, names, [by_part(row["gflops"]) for row in rows])
    upper.set_ylabel("GFLOPs per image")
    draw_bars(lower, names, [with_rest(row["part_ms"]) for row in rows])
    lower.set_ylabel("ms per batch")
    handles, labels = lower.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def draw_bars(axes: Axes, names: Sequence[str], bars: Sequence[Mapping[str, float]]) -> None:
    """Draws a stack of parts per name, and its ``total`` above it."""
    bottom = [0.0] * len(bars)
    for part, color in PART_COLORS.items():
        if any(part in bar for bar in bars):
            heights = [max(bar.get(part, 0.0), 0.0) for bar in bars]
            axes.bar(range(len(bars)), heights, bottom=bottom, color=color, label=part, width=0.7)
            bottom = [b + h for b, h in zip(bottom, heights, strict=True)]
    for x, bar in enumerate(bars):
        axes.annotate(f"{bar['total']:.4g}", (x, bottom[x]), ha="center", va="bottom", fontsize=9)
    wrapped = ["\n".join(textwrap.wrap(name, 14)) for name in names]
    axes.set_xticks(range(len(bars)), wrapped, fontsize=8, parse_math=False)
    axes.set_ylim(0, 1.1 * max(bottom))
    axes.spines[["top", "right"]].set_visible(False)


def _draw_panel(axes: Axes, rows: Sequence[Row], x: str, y: str) -> None:
    points = _points(rows, x, y)
    for execution in dict.fromkeys(row["execution"] for _, _, row in points):
        _draw_line(axes, execution, [p for p in points if p[2]["execution"] == execution], x)
    axes.set_xlabel(_LABELS[x])
    axes.set_ylabel(_LABELS[y])
    # Room for stars and labels. Costs from zero, so that lengths can be compared; AP is a matter of
    # points, which would all lie on one line.
    axes.set_xlim(0, 1.1 * max(point[0] for point in points))
    low, high = min(point[1] for point in points), max(point[1] for point in points)
    margin = max(0.15 * (high - low), 0.5)
    axes.set_ylim(max(low - margin, 0.0) if y == "AP" else 0.0, high + margin)
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _points(rows: Sequence[Row], x: str, y: str) -> list[_Point]:
    """The rows that have both values."""
    points = []
    for row in rows:
        at_x, at_y = _VALUES[x](row), _VALUES[y](row)
        if at_x is not None and at_y is not None:
            points.append((at_x, at_y, row))
    return points


def _draw_line(axes: Axes, execution: str, points: Sequence[_Point], x: str) -> None:
    style = _STYLES[execution]
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    look: dict[str, Any] = {"color": style.color, "marker": style.marker, "label": execution}
    if not find_execution(execution).prunes:
        axes.plot(xs, ys, linestyle="none", markersize=14, zorder=4, **look)
        axes.axhline(ys[0], color=style.color, linewidth=0.9, linestyle=(0, (4, 4)), zorder=1)
        return
    if x == "keep_ratio":
        axes.plot(xs, ys, linewidth=1.6, markersize=6, zorder=3, **look)
    else:
        axes.plot(xs, ys, linestyle="none", markersize=6, zorder=3, **look)
        front = pareto_front(list(zip(xs, ys, strict=True)))
        edge = [(xs[i], ys[i]) for i in front]
        axes.plot(*zip(*edge, strict=True), color=style.color, linewidth=1.6, zorder=2)
        for at_x, at_y, row in points:
            if row["keep_ratio"] == 1.0:
                continue  # lies on dense, as does that of every other execution
            _draw_label(axes, f"{row['keep_ratio']:g}", (at_x, at_y), style)


def _draw_label(axes: Axes, text: str, point: tuple[float, float], style: _Style) -> None:
    label = axes.annotate(
        text,
        point,
        xytext=style.label_at,
        textcoords="offset points",
        ha="left" if style.label_at[0] > 0 else "right",
        fontsize=8,
        color=style.color,
        zorder=5,
    )
    label.set_path_effects([withStroke(linewidth=2.5, foreground="white")])


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Returns which points no other one beats, cheapest first.

    Args:
        points: (cost, value): less cost and more value are better.
    """
    best = -math.inf
    front = []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[i][1] > best:
            best = points[i][1]
            front.append(i)
    return front


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
