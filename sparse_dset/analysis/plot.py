"""A figure of result rows: what pruning costs in accuracy, and what it saves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from sparse_dset.analysis.table import Row, latest

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
        title="numbers beside the points: keep ratio" if with_ap else None,
        loc="outside lower center",
        ncols=len(names),
        frameon=False,
    )
    if title:
        figure.suptitle(title, fontsize=11)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _draw_panel(axes: Axes, rows: Sequence[Row], x: str, y: str) -> None:
    points = _points(rows, x, y)
    for execution in dict.fromkeys(row["execution"] for _, _, row in points):
        _draw_line(axes, execution, [p for p in points if p[2]["execution"] == execution], x)
    axes.set_xlabel(_LABELS[x])
    axes.set_ylabel(_LABELS[y])
    # From zero, so that lengths can be compared; the room above is for stars and labels.
    axes.set_xlim(0, 1.1 * max(point[0] for point in points))
    axes.set_ylim(0, 1.1 * max(point[1] for point in points) or 1.0)
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
    if execution == "dense":
        axes.plot(xs, ys, linestyle="none", markersize=14, zorder=4, **look)
        axes.axhline(ys[0], color=style.color, linewidth=0.9, linestyle=(0, (4, 4)), zorder=1)
        return
    axes.plot(xs, ys, linewidth=1.6, markersize=6, zorder=3, **look)
    if x != "keep_ratio":
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


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
