"""An audit as Markdown tables and as a picture."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from sparse_dset.analysis.audit import CLAIMED_SAVING, FORMS, PARTS
from sparse_dset.analysis.plot import PART_COLORS
from sparse_dset.analysis.table import MISSING, Row, markdown_table

_NUM_MODULES = 20
_NUM_OPERATORS = 15

EXPLANATION = (
    "1 multiply-add (MAC) = 2 FLOPs; per image. computed: by the closed form, from the "
    "configuration and the kept tokens alone. counted: from what ran. ms: of a whole batch, "
    "medians; the parts are timed inside of whole forward passes, and the rest is masks, tables of "
    "neighbours and gathering. MiB moved: inputs and outputs of every operator, as if no cache "
    "held anything. published: the network as it is trained; inference: after fuse(), which folds "
    "normalisations and branches, projects samples instead of tokens where that is less, and runs "
    "heads on queries only."
)


def arm_name(row: Row) -> str:
    """Names the execution and, where it prunes, the keep ratio."""
    return (
        row["execution"]
        if row["execution"] == "dense"
        else f"{row['execution']}@{row['keep_ratio']:g}"
    )


def format_audit(rows: Sequence[Row], steps: Sequence[Row], claims: Sequence[Row] = ()) -> str:
    """Returns Markdown: steps, the published audit's figures if given, parts, modules, operators.

    Args:
        rows: of `audit`.
        steps: of `audit_steps`, of one or more keep ratios.
        claims: of `compare_with_claims`.
    """
    sections = [("What each step saves", format_steps(steps))]
    if claims:
        sections.append(("The published audit", _format_claims(claims, steps)))
    sections += [
        ("Parts", format_parts(rows)),
        ("Modules of the published form, inner ones included", _format_modules(rows)),
        ("Operators that no counter counts, in the published form", _format_uncounted(rows)),
    ]
    text = "\n\n".join(f"## {title}\n\n{body}" for title, body in sections)
    return f"{text}\n\n{EXPLANATION}\n"


def format_steps(steps: Sequence[Row]) -> str:
    """Returns a table of GFLOPs by part, a line per step and keep ratio."""
    header = ["step", "keep ratio", "scorer", *(p for p in PARTS if p != "pruner")]
    lines = []
    for row in steps:
        gflops = row["gflops"]
        parts = [gflops["pruner"], *(gflops[p] for p in PARTS if p != "pruner"), gflops["total"]]
        lines.append(
            [
                row["step"],
                f"{row['keep_ratio']:g}",
                *(f"{value:.2f}" for value in parts),
                f"{100 * row['gflops_saved']:.1f}",
                f"{1 / (1 - row['gflops_saved']):.2f}x",
            ]
        )
    return markdown_table([*header, "GFLOPs", "saved %", "of dense"], lines)


def _format_claims(claims: Sequence[Row], steps: Sequence[Row]) -> str:
    lines = [
        [
            row["part"],
            MISSING if row["claimed"] is None else f"{row['claimed']:.0f}",
            f"{row['counted']:.3f}",
        ]
        for row in claims
    ]
    saved = next(row["gflops_saved"] for row in steps if "zero-filled" in row["step"])
    lines.append(
        ["saved by pruning stride 32", f"{100 * CLAIMED_SAVING:.0f} %", f"{100 * saved:.1f} %"]
    )
    return markdown_table(["part", "GFLOPs as published", "counted"], lines)


def format_parts(rows: Sequence[Row]) -> str:
    """Returns a table with a line per form, arm and part."""
    header = ["form", "arm", "part", "computed", "counted", "GMACs", "share %", "ms", "time %"]
    lines = []
    for row in rows:
        total = row["total"]
        rest_ms = total["ms"] - sum(part["ms"] for part in row["parts"].values())
        named = {**row["parts"], "rest": {"ms": rest_ms}, "total": total}
        for name, costs in named.items():
            gflops, computed = costs.get("gflops"), costs.get("gflops_computed")
            lines.append(
                [
                    row["form"],
                    arm_name(row),
                    name,
                    MISSING if computed is None else f"{computed:.3f}",
                    MISSING if gflops is None else f"{gflops:.3f}",
                    MISSING if gflops is None else f"{gflops / 2:.3f}",
                    MISSING if gflops is None else f"{100 * gflops / total['gflops']:.1f}",
                    f"{costs['ms']:.1f}",
                    f"{100 * costs['ms'] / total['ms']:.1f}",
                    f"{costs['parameters'] / 1e6:.2f}" if "parameters" in costs else MISSING,
                    f"{costs['mib_moved']:.0f}" if "mib_moved" in costs else MISSING,
                ]
            )
    return markdown_table([*header, "parameters M", "MiB moved"], lines)


def _format_modules(rows: Sequence[Row]) -> str:
    shown = [row for row in rows if row["form"] == FORMS[0]]
    modules = shown[0]["modules"]
    largest = sorted(modules, key=lambda name: -modules[name]["gflops"])[:_NUM_MODULES]
    header = ["module", "parameters M"]
    header += [f"{arm_name(row)} {unit}" for row in shown for unit in ("GFLOPs", "ms", "MiB")]
    lines = []
    for name in sorted(largest, key=list(modules).index):
        line = [name, f"{modules[name]['parameters'] / 1e6:.2f}"]
        for row in shown:
            costs = row["modules"].get(name)
            values = costs and (costs["gflops"], costs["ms"], costs["mib_moved"])
            line += (
                ["0", "0", "0"]
                if values is None
                else [
                    f"{values[0]:.3f}",
                    f"{values[1]:.2f}",
                    f"{values[2]:.1f}",
                ]
            )
        lines.append(line)
    text = markdown_table(header, lines)
    left_out = len(modules) - len(largest)
    return f"{text}\n\nThe {left_out} smaller ones are in audit.json." if left_out else text


def _format_uncounted(rows: Sequence[Row]) -> str:
    shown = [row for row in rows if row["form"] == FORMS[0]]
    totals: dict[str, int] = {}
    for row in shown:
        for name, seen in row["uncounted"].items():
            totals[name] = totals.get(name, 0) + seen["bytes"]
    largest = sorted(totals, key=lambda name: -totals[name])
    header = ["operator"]
    header += [f"{arm_name(row)} {unit}" for row in shown for unit in ("calls", "MiB")]
    lines = []
    for name in largest[:_NUM_OPERATORS]:
        line = [name]
        for row in shown:
            seen = row["uncounted"].get(name, {"calls": 0, "bytes": 0})
            line += [str(seen["calls"]), f"{seen['bytes'] / 2**20:.1f}"]
        lines.append(line)
    text = markdown_table(header, lines)
    sampling = ", ".join(f"{arm_name(row)} {row['sampling_gflops']:.3f}" for row in shown)
    more = len(largest) - _NUM_OPERATORS
    if more > 0:
        text += f"\n\n{more} more are in audit.json."
    return (
        f"{text}\n\nThey copy, compare or work on elements; those of deformable attention also "
        f"sample, GFLOPs beside the total: {sampling}."
    )


def plot_audit(rows: Sequence[Row], steps: Sequence[Row], path: str | Path, title: str) -> None:
    """Draws GFLOPs of the steps with what no pruning removes, and the time of every arm.

    Args:
        rows: of `audit`.
        steps: of `audit_steps`, of one keep ratio.
        path: the picture to write (png, pdf or svg, by its ending).
        title: over all.
    """
    figure = Figure(figsize=(13, 5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 1])
    bars = [row for row in steps if not row["step"].startswith("floor")]
    _draw_bars(left, [row["step"] for row in bars], [row["gflops"] for row in bars])
    left.set_ylabel("GFLOPs per image")
    dense = bars[0]["gflops"]["total"]
    for row in steps:
        if row["step"].startswith("floor"):
            floor = row["gflops"]["total"]
            left.axhline(floor, color="0.25", linewidth=1, linestyle=(0, (4, 3)))
            text = f"{row['step']}: at most {dense / floor:.2f}x less"
            label = left.annotate(
                text,
                (len(bars) - 0.5, floor),
                xytext=(0, 3),
                textcoords="offset points",
                ha="right",
                fontsize=8,
            )
            label.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
    names = [f"{arm_name(row)} {row['form']}" for row in rows]
    times = [{part: costs["ms"] for part, costs in row["parts"].items()} for row in rows]
    for one, row in zip(times, rows, strict=True):
        one["rest"] = row["total"]["ms"] - sum(one.values())
        one["total"] = row["total"]["ms"]
    _draw_bars(right, names, times)
    right.set_ylabel("ms per batch")
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.suptitle(title, fontsize=11)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _draw_bars(axes: Axes, names: Sequence[str], bars: Sequence[Mapping[str, float]]) -> None:
    bottom = [0.0] * len(bars)
    for part, color in PART_COLORS.items():
        if any(part in bar for bar in bars):
            heights = [max(bar.get(part, 0.0), 0.0) for bar in bars]
            axes.bar(range(len(bars)), heights, bottom=bottom, color=color, label=part, width=0.7)
            bottom = [b + h for b, h in zip(bottom, heights, strict=True)]
    for x, bar in enumerate(bars):
        axes.annotate(f"{bar['total']:.4g}", (x, bottom[x]), ha="center", va="bottom", fontsize=9)
    wrapped = ["\n".join(textwrap.wrap(name, 14)) for name in names]
    axes.set_xticks(range(len(bars)), wrapped, fontsize=8)
    axes.set_ylim(0, 1.1 * max(bottom))
    axes.spines[["top", "right"]].set_visible(False)
