"""Result rows as a table that reads well in a terminal and as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparse_dset.engine.loggers import shown
from sparse_dset.models.executions import NAMES, find_execution

Row = Mapping[str, Any]
MISSING = "-"
LEVELS = ("s3", "s4", "s5")

EXPLANATION = (
    "keep ratio: share of tokens asked for; kept: share that was counted on strides 8/16/32 of the "
    "feature maps. AP: COCO average precision in percent, higher is better. GFLOPs: per image, 1 "
    "multiply-add = 2 FLOPs; saved: fewer than dense. latency: one forward pass of the batch, "
    "median [10th-90th percentile]; speed-up: over dense, timed in turns with it in one process; "
    "over plain: over dense as published, without what fuse() does. "
    "dense prunes nothing; dense_scatter prunes, then fills zeros in and goes on densely; sparse "
    "computes kept tokens only."
)


def latest(rows: Sequence[Row]) -> list[Row]:
    """Returns the last row of each execution, selection and keep ratio, ordered by them."""
    newest = {
        (NAMES.index(row["execution"]), selection_text(row), round(row["keep_ratio"], 6)): row
        for row in rows
    }
    return [newest[key] for key in sorted(newest)]


def selection_text(row: Row) -> str:
    """Tells what a sweep changed of a checkpoint's pruner, e.g. "halo 1, s4 -1.50"."""
    selection = dict(row.get("selection") or {})
    offsets = selection.pop("offsets", {})
    return ", ".join(
        f"{key} {value:.2f}" if isinstance(value, float) else f"{key} {value}"
        for key, value in {**selection, **offsets}.items()
    )


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        header: a name per column.
        lines: as many cells as there are columns.
    """

    header: Sequence[str]
    lines: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """Returns it with padded cells; columns but the first are set to the right."""
        return markdown_table(self.header, self.lines)


def format_table(rows: Sequence[Row], *, class_name: str = "car") -> str:
    """Returns a Markdown table, one line per execution and keep ratio, and what its columns mean.

    Args:
        rows: of `measure`, perhaps with the ``metrics`` of `evaluate`; a later row of the same
            execution and keep ratio replaces an earlier one. Columns that no row fills are left
            out.
        class_name: whose AP gets a column of its own, where it was measured.

    Raises:
        ValueError: no rows.
    """
    notes = "\n".join(filter(None, [measured_with(latest(rows)), EXPLANATION]))
    return f"{results_table(rows, class_name=class_name).markdown()}\n\n{notes}\n"


def measured_with(rows: Iterable[Row]) -> str:
    """Returns a sentence about the hardware that rows name in ``environment``; "" without any."""
    used = dict.fromkeys(_hardware(row["environment"]) for row in rows if "environment" in row)
    return f"Measured with {'; and with '.join(used)}." if used else ""


def _hardware(environment: Row) -> str:
    device = environment.get("device", "cpu")
    if device != "cpu":
        return str(device)
    threads = environment.get("threads")
    parts = [
        None if threads is None else f"{threads} thread{'' if threads == 1 else 's'}",
        environment.get("instruction_set"),
        environment.get("cpu"),
    ]
    return ", ".join(part for part in parts if part) or "a CPU"


def results_table(rows: Sequence[Row], *, class_name: str = "car") -> Table:
    """Returns the table of `format_table`."""
    if not rows:
        raise ValueError("a table needs at least one row")
    cells = [_cells(row, class_name) for row in latest(rows)]
    columns = [name for name in cells[0] if any(line[name] != MISSING for line in cells)]
    return Table(columns, [[line[name] for name in columns] for line in cells])


def markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table with padded cells; columns but the first are set to the right."""
    header, *lines = ([markdown_text(cell) for cell in line] for line in (header, *lines))
    widths = [max(3, *map(len, column)) for column in zip(header, *lines, strict=True)]
    rules = ["-" * width if i == 0 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    return "\n".join(
        "| " + " | ".join(_padded(line, widths)) + " |" for line in [header, rules, *lines]
    )


def markdown_text(text: str) -> str:
    """Returns a line of text as Markdown shows it: no table cell, HTML or formula begins in it."""
    escaped = re.sub(r"[\\|<$]", r"\\\g<0>", text)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in escaped)


def _padded(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        text.ljust(width) if i == 0 else text.rjust(width)
        for i, (text, width) in enumerate(zip(line, widths, strict=True))
    ]


def _cells(row: Row, class_name: str) -> dict[str, str]:
    metrics = row.get("metrics") or {}
    latency = row.get("latency_ms")
    return {
        "execution": row["execution"],
        "keep ratio": f"{row['keep_ratio']:g}",
        "selection": selection_text(row) or MISSING,
        "kept % S3/S4/S5": kept_text(row),
        "AP": _metric(metrics, "AP"),
        "AP50": _metric(metrics, "AP50"),
        f"{class_name} AP": _metric(metrics, f"AP/{class_name}"),
        f"{class_name} AP50": _metric(metrics, f"AP50/{class_name}"),
        "GFLOPs": f"{row['gflops']['total']:.2f}" if "gflops" in row else MISSING,
        "saved %": _percent(row.get("gflops_saved")),
        "latency ms": MISSING if latency is None else _latency_text(latency),
        "speed-up": _times(row.get("speedup")),
        "over plain": _times(row.get("speedup_over_plain")),
    }


def arm_name(row: Row) -> str:
    """Names the execution and, where it prunes, the keep ratio."""
    if not find_execution(row["execution"]).prunes:
        return row["execution"]
    return f"{row['execution']}@{row['keep_ratio']:g} {selection_text(row)}".rstrip()


def by_part(gflops: Mapping[str, float]) -> dict[str, float]:
    """Takes the scorer out of the encoder, of which ``count_flops`` makes it a part."""
    return {**gflops, "encoder": gflops["encoder"] - gflops["pruner"]}


def with_rest(part_ms: Mapping[str, float]) -> dict[str, float]:
    """Adds ``rest``, what ``total`` holds beyond the parts."""
    parts = sum(ms for name, ms in part_ms.items() if name != "total")
    return {**part_ms, "rest": part_ms["total"] - parts}


def kept_shares(row: Row) -> dict[str, float]:
    """The counted share of each level: of the evaluated images, else of the batch."""
    metrics = row.get("metrics") or {}
    if all(f"kept_{level}" in metrics for level in LEVELS):
        return {level: metrics[f"kept_{level}"] for level in LEVELS}
    return dict(row.get("kept", {}))


def kept_text(row: Row) -> str:
    """The counted shares in percent."""
    shares = kept_shares(row)
    return "/".join(
        MISSING if shares.get(level) is None else f"{100 * shares[level]:.0f}" for level in LEVELS
    )


def _latency_text(latency: Mapping[str, float]) -> str:
    return f"{latency['median']:.1f} [{latency['p10']:.1f}-{latency['p90']:.1f}]"


def _times(speedup: float | None) -> str:
    return MISSING if speedup is None else f"{speedup:.2f}x"


def _metric(metrics: Mapping[str, float | None], name: str) -> str:
    """What was measured, in percent; it may be n/a, which is not the same as not measured."""
    value = metrics.get(name)
    return shown(None if value is None else 100 * value, ".1f") if name in metrics else MISSING


def _percent(share: float | None) -> str:
    return MISSING if share is None else f"{100 * share:.1f}"
