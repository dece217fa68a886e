"""An audit as Markdown tables and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from sparse_dset.audit.audit import FORMS, PARTS
from sparse_dset.audit.claims import CLAIMED_RATIO, CLAIMED_SAVING
from sparse_dset.benchmark.plot import draw_bars, save_figure
from sparse_dset.benchmark.table import (
    LEVELS,
    MISSING,
    Row,
    Table,
    arm_name,
    markdown_table,
    with_rest,
)

_NUM_MODULES = 20
_NUM_OPERATORS = 15

EXPLANATION = (
    "1 multiply-add (MAC) = 2 FLOPs; per image, means over the images of the table of what was "
    "kept. computed: by the closed form, from the "
    "configuration and the kept tokens alone. counted: from what ran. ms: of a whole batch, "
    "medians; the parts are timed inside of whole forward passes, and the rest is masks, tables of "
    "neighbours and gathering. MiB moved: inputs and outputs of every operator, as if no cache "
    "held anything. published: the network as it is trained; inference: after fuse(), which folds "
    "normalisations and branches, projects samples instead of tokens where that is less, and runs "
    "heads on queries only."
)


def format_audit(rows: Sequence[Row], steps: Sequence[Row], claims: Sequence[Row] = ()) -> str:
    """Returns Markdown: steps, the published audit's figures if given, parts, modules, operators.

    Args:
        rows: of `audit`.
        steps: of `audit_steps`, of one or more keep ratios.
        claims: of `compare_with_claims`.
    """
    sections = [
        ("What each step saves", steps_table(steps).markdown()),
        ("What was kept", kept_table(rows).markdown()),
    ]
    if claims:
        sections.append(("The published audit", _format_claims(claims, steps)))
    sections += [
        ("Parts", parts_table(rows).markdown()),
        ("Modules of the published form, inner ones included", _format_modules(rows)),
        ("Operators that no counter counts, in the published form", _format_uncounted(rows)),
    ]
    text = "\n\n".join(f"## {title}\n\n{body}" for title, body in sections)
    return f"{text}\n\n{EXPLANATION}\n"


def steps_table(steps: Sequence[Row]) -> Table:
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
    return Table([*header, "GFLOPs", "saved %", "times less"], lines)


def kept_table(rows: Sequence[Row]) -> Table:
    """Returns a table of the share of tokens kept on each level, a line per form and arm."""
    header = ["form", "arm", "images", *(f"{level} kept" for level in LEVELS)]
    lines = [
        [
            row["form"],
            arm_name(row),
            str(row["num_images"]),
            *(f"{row['kept'][level]:.3f}" for level in LEVELS),
        ]
        for row in rows
    ]
    return Table(header, lines)


def _format_claims(claims: Sequence[Row], steps: Sequence[Row]) -> str:
    lines = [
        [
            row["part"],
            MISSING if row["claimed"] is None else f"{row['claimed']:.0f}",
            f"{row['counted']:.3f}",
        ]
        for row in claims
    ]
    for row in steps:
        if "zero-filled" in row["step"] and row["keep_ratio"] == CLAIMED_RATIO:
            saved = f"{100 * row['gflops_saved']:.1f} %"
            lines.append(["saved by pruning stride 32", f"{100 * CLAIMED_SAVING:.0f} %", saved])
    return markdown_table(["part", "GFLOPs as published", "counted"], lines)


def parts_table(rows: Sequence[Row]) -> Table:
    """Returns a table with a line per form, arm and part."""
    header = ["form", "arm", "part", "computed", "counted", "GMACs", "share %", "ms", "time %"]
    lines = []
    for row in rows:
        total = row["total"]
        named = {**row["parts"], "rest": {"ms": with_rest(_part_ms(row))["rest"]}, "total": total}
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
    return Table([*header, "parameters M", "MiB moved"], lines)


def _format_modules(rows: Sequence[Row]) -> str:
    shown = [row for row in rows if row["form"] == FORMS[0]]
    modules: dict[str, Row] = {}
    for row in shown:
        for name, costs in row["modules"].items():
            if name not in modules or costs["gflops"] > modules[name]["gflops"]:
                modules[name] = costs
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
    unknown = sorted({name for row in shown for name in row.get("without_formula", ())})
    if unknown:
        text += (
            f"\n\nGFLOPs leave out what these may multiply: {', '.join(unknown)}. Each needs a "
            "formula (torch.utils.flop_counter.register_flop_formula)."
        )
    others = "The others" if unknown else "They"
    return (
        f"{text}\n\n{others} copy, compare, reduce or work on elements; those of deformable "
        f"attention also sample, GFLOPs beside the total: {sampling}."
    )


def plot_audit(rows: Sequence[Row], steps: Sequence[Row], path: str | Path, title: str) -> None:
    """Draws GFLOPs of the steps with what no pruning removes, and the time of every arm.

    Args:
        rows: of `audit`.
        steps: of `audit_steps`, of one keep ratio.
        path: the picture to write (png, pdf or svg, by its ending).
        title: over all.
    """
    figure = audit_figure(rows, steps)
    figure.suptitle(title, fontsize=11, parse_math=False)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_figure(figure, path)


def audit_figure(rows: Sequence[Row], steps: Sequence[Row]) -> Figure:
    """Returns the figure of `plot_audit`; without rows, of the steps alone."""
    panels = 2 if rows else 1
    figure = Figure(figsize=(6.5 * panels, 5), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    _draw_steps(axes[0], steps)
    if rows:
        names = [f"{arm_name(row)} {row['form']}" for row in rows]
        draw_bars(axes[1], names, [with_rest(_part_ms(row)) for row in rows])
        axes[1].set_ylabel("ms per batch")
    handles, labels = axes[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def _part_ms(row: Row) -> dict[str, float]:
    parts = {part: costs["ms"] for part, costs in row["parts"].items()}
    return {**parts, "total": row["total"]["ms"]}


def _draw_steps(axes: Axes, steps: Sequence[Row]) -> None:
    bars = [row for row in steps if not row["step"].startswith("floor")]
    draw_bars(axes, [row["step"] for row in bars], [row["gflops"] for row in bars])
    axes.set_ylabel("GFLOPs per image")
    dense = bars[0]["gflops"]["total"]
    for row in steps:
        if row["step"].startswith("floor"):
            floor = row["gflops"]["total"]
            axes.axhline(floor, color="0.25", linewidth=1, linestyle=(0, (4, 3)))
            label = axes.annotate(
                f"{row['step']}: at most {dense / floor:.2f}x less",
                (len(bars) - 0.5, floor),
                xytext=(0, 3),
                textcoords="offset points",
                ha="right",
                fontsize=8,
            )
            label.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
