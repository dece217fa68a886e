"""What a benchmark's rows say, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from sparse_dset.benchmark.table import (
    Row,
    arm_name,
)
from sparse_dset.models.executions import find_execution

MOST_AP_LOST = 0.005
"""How much AP a row may lose to be called as good as dense."""


def describe_saving(rows: Sequence[Row]) -> list[str]:
    """Returns sentences: the row that saves most time and loses little AP, of each execution.

    AP is held against that of dense, or of a row that keeps every token, which is the same. Where
    AP was measured, rows that lack it are passed over.

    Args:
        rows: of `measure`, the latest of each execution and keep ratio.
    """
    whole = [row for row in rows if row["keep_ratio"] == 1.0]
    dense = next((row for row in whole if not find_execution(row["execution"]).prunes), None)
    reference = next((ap for row in whole if (ap := average_precision(row)) is not None), None)
    sentences = []
    for execution in dict.fromkeys(row["execution"] for row in rows):
        own = [row for row in rows if row["execution"] == execution and row["keep_ratio"] < 1.0]
        if any(average_precision(row) is not None for row in own):
            own = [row for row in own if average_precision(row) is not None]
        good = own
        if reference is not None:
            good = [
                r
                for r in own
                if (ap := average_precision(r)) is None or ap >= reference - MOST_AP_LOST
            ]
        if good:
            best = max(good, key=lambda row: row["speedup"])
            sentences.append(_describe(best, reference) + _largest_saving(dense, best))
        elif own:
            points = f"{100 * MOST_AP_LOST:g} points of AP"
            sentences.append(f"{execution} loses more than {points} at every keep ratio measured.")
    return sentences


def _describe(row: Row, reference: float | None) -> str:
    text = f"{arm_name(row)} "
    ap = average_precision(row)
    if ap is not None:
        change = "" if reference is None else f" ({100 * (ap - reference):+.1f} against dense)"
        text += f"has {100 * ap:.1f} AP{change} and "
    flops, time = _change(row["gflops_saved"], "fewer"), _change(1 - 1 / row["speedup"], "less")
    text += f"needs {flops} GFLOPs and {time} time than dense"
    plain = row.get("speedup_over_plain")
    return f"{text} ({_change(1 - 1 / plain, 'less')} than dense as published)" if plain else text


def _largest_saving(dense: Row | None, row: Row) -> str:
    """Ends the sentence, and tells which parts gave what was saved."""
    if dense is None:
        return "."
    parts = ("backbone", "encoder", "neck", "decoder")
    saved = {part: dense["gflops"][part] - row["gflops"][part] for part in parts}
    total = sum(saved.values())
    if total <= 0:
        return "."
    shares = sorted(saved.items(), key=lambda item: -item[1])
    told = ", ".join(f"{part} {100 * value / total:.0f} %" for part, value in shares if value > 0)
    return f". Of the GFLOPs saved: {told}."


def describe_break_even(rows: Sequence[Row]) -> list[str]:
    """Returns a sentence per execution: at which keep ratios it is faster than dense."""
    sentences = []
    for execution in dict.fromkeys(row["execution"] for row in rows):
        own = sorted(
            (row["keep_ratio"], row["speedup"]) for row in rows if row["execution"] == execution
        )
        if not find_execution(execution).prunes or not own:
            continue
        ratio = break_even(own)
        faster = [f"{keep:g}" for keep, speedup in own if speedup > 1.0]
        if ratio is not None:
            text = f"is faster than dense below a keep ratio of {ratio:.2f}"
        elif not faster:
            text = "is not faster than dense at any keep ratio"
        elif len(faster) == len(own):
            text = "is faster than dense at every keep ratio"
        else:
            text = f"is faster than dense at a keep ratio of {', '.join(faster)}"
        sentences.append(f"{execution} {text}, of those measured.")
    return sentences


def break_even(points: Sequence[tuple[float, float]]) -> float | None:
    """Returns the keep ratio at which a speed-up falls to 1, between measured ones.

    Args:
        points: (keep ratio, speed-up), rising ratios.

    Returns:
        The ratio below which all are faster and above which none is; None if there is none.
    """
    faster = [speedup > 1.0 for _, speedup in points]
    count = sum(faster)
    if not 0 < count < len(points) or not all(faster[:count]):
        return None
    (low, fast), (high, slow) = points[count - 1 : count + 1]
    return low + (high - low) * (fast - 1.0) / (fast - slow)


def average_precision(row: Row) -> float | None:
    """The AP of a row; None: not measured."""
    return (row.get("metrics") or {}).get("AP")


def _change(saved: float, word: str) -> str:
    return f"{100 * saved:.0f} % {word}" if saved >= 0 else f"{-100 * saved:.0f} % more"
