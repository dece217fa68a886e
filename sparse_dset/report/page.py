"""One page that tells what result rows say: HTML that needs no other file, and Markdown."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from matplotlib import rc_context
from matplotlib.figure import Figure

from sparse_dset.audit.summary import EXPLANATION as AUDIT_EXPLANATION
from sparse_dset.audit.summary import audit_figure, parts_table, steps_table
from sparse_dset.benchmark.comparison import comparisons_table
from sparse_dset.benchmark.plot import kept_figure, pareto_front, parts_figure, results_figure
from sparse_dset.benchmark.scale import measured_table, scale_figure, summary_table
from sparse_dset.benchmark.table import (
    EXPLANATION,
    Row,
    Table,
    latest,
    markdown_text,
    results_table,
)
from sparse_dset.engine.loggers import read_rows
from sparse_dset.models.executions import find_execution
from sparse_dset.report.sentences import average_precision, describe_break_even, describe_saving
from sparse_dset.sweep.ablation import ablation_table
from sparse_dset.sweep.jobs import failed_jobs

_ERROR_LENGTH = 500  # characters of an error that are shown, its end


@dataclass(frozen=True)
class Picture:
    """A figure.

    Attributes:
        name: of a file that holds it.
        svg: an ``<svg>`` element.
        caption: what it shows.
    """

    name: str
    svg: str
    caption: str


@dataclass(frozen=True)
class Section:
    """What rows of one kind and setup say.

    Attributes:
        title: of the section.
        findings: sentences to read first.
        figures: pictures.
        tables: with a caption each.
        notes: what the columns mean.
        settings: how and where it was measured.
    """

    title: str
    findings: Sequence[str] = ()
    figures: Sequence[Picture] = ()
    tables: Sequence[tuple[str, Table]] = ()
    notes: Sequence[str] = ()
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """A title and sections, which become one page."""

    title: str
    sections: Sequence[Section]

    def html(self) -> str:
        """Returns the page, which loads nothing."""
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(Path(__file__).parent),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        return environment.get_template("page.html.j2").render(report=self)

    def markdown(self) -> str:
        """Returns the same as Markdown; pictures are files named after them, ``name.svg``."""
        lines = [f"# {markdown_text(self.title)}"]
        for section in self.sections:
            lines.append(f"## {section.title}")
            lines += [f"> {finding}" for finding in section.findings]
            lines += [f"![{markdown_text(p.caption)}]({p.name}.svg)" for p in section.figures]
            for caption, table in section.tables:
                lines += [f"### {markdown_text(caption)}", table.markdown()]
            lines += section.notes
            if section.settings:
                settings = section.settings.items()
                lines.append("\n".join(f"- {k}: {markdown_text(v)}" for k, v in settings))
        return "\n\n".join(lines) + "\n"


def read_all(paths: Iterable[str | Path]) -> list[Row]:
    """Reads the rows of files, and of all ``*.jsonl`` files under folders.

    Raises:
        FileNotFoundError: a path is not there, or a folder has no such files.
    """
    rows: list[Row] = []
    for path in map(Path, paths):
        files = sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]
        if not files or not path.exists():
            raise FileNotFoundError(f"there are no result rows (*.jsonl) at {path}")
        for file in files:
            rows += read_rows(file)
    return sorted(rows, key=lambda row: row.get("time", ""))  # whatever the files are called


def make_report(rows: Sequence[Row], title: str, class_name: str = "car") -> Report:
    """Makes a report of rows of any kind, a section per kind and setup.

    Args:
        rows: as scripts write them; of two alike the later one counts. Kinds that have no section
            (training, evaluation, ...) are left out and counted.
        title: of the page.
        class_name: whose AP gets a column of its own, where it was measured.

    Raises:
        ValueError: no row has a section.
    """
    makers: dict[str, Callable[[Sequence[Row], str, str], Section]] = {
        "benchmark": _benchmark_section,
        "sweep": _benchmark_section,
        "audit": _audit_section,
        "audit_step": _steps_section,
        "ablation": _ablation_section,
        "scale": _scale_section,
        "comparison": _comparison_section,
    }
    groups: dict[tuple[str, str], list[Row]] = {}
    left_out = 0
    for row in rows:
        if row.get("kind") in makers:
            groups.setdefault((row["kind"], _setup_key(row)), []).append(row)
        elif row.get("kind") != "failed":
            left_out += 1
    if not groups:
        raise ValueError(
            f"none of {len(rows)} rows can be shown; kinds that can are {', '.join(makers)}"
        )
    sections = [
        makers[kind](own, f"{kind}_{number}", class_name)
        for number, ((kind, _), own) in enumerate(groups.items())
    ]
    failed = _failures(rows)
    if failed:
        sections.append(_failed_section(failed))
    if left_out:
        sections.append(Section("Left out", notes=[f"{left_out} rows of other kinds."]))
    return Report(title, sections)


def _setup_key(row: Row) -> str:
    """Tells apart what cannot be compared: rows of one section have the same key."""
    environment = row.get("environment", {})
    machine = [environment.get(key) for key in ("cpu", "instruction_set", "device", "threads")]
    if row["kind"] == "ablation":
        return json.dumps(row.get("base"))
    if row["kind"] == "scale":
        return json.dumps([row.get("checkpoint"), row.get("image"), *machine])
    return json.dumps([row.get("setup"), row.get("target"), *machine], sort_keys=True)


def _benchmark_section(rows: Sequence[Row], name: str, class_name: str) -> Section:
    rows = latest(rows)
    setup = rows[0]["setup"]
    pictures = [
        Picture(
            f"{name}_results",
            _svg(results_figure(rows)),
            "Each point is an execution at a keep ratio.",
        )
    ]
    if all("part_ms" in row for row in rows):
        caption = "Where the compute and the time go. Rest: masks, tables of neighbours, gathering."
        pictures.append(Picture(f"{name}_parts", _svg(parts_figure(rows)), caption))
    as_trained = [row for row in rows if not row.get("selection")]
    pictures += [
        Picture(
            f"{name}_kept_{execution}",
            _svg(kept_figure(as_trained, execution)),
            f"What {execution} keeps on each level; the grey line is what was asked.",
        )
        for execution in dict.fromkeys(row["execution"] for row in as_trained)
        if find_execution(execution).pruned_levels(())
    ]
    height, width = setup["size"]
    return Section(
        f"{setup['model']}, {width} x {height} pixels",
        findings=[*describe_saving(rows), *describe_break_even(as_trained)],
        figures=pictures,
        tables=[("All rows", _with_front(rows, class_name))],
        notes=[
            EXPLANATION,
            "front: no row of the same execution has more AP and takes less time.",
        ],
        settings=_settings(rows[-1], setup),
    )


def _with_front(rows: Sequence[Row], class_name: str) -> Table:
    """Adds a column that tells which rows no row of the same execution beats."""
    table = results_table(rows, class_name=class_name)
    if all(average_precision(row) is None for row in rows):
        return table
    best: set[int] = set()
    for execution in dict.fromkeys(row["execution"] for row in rows):
        own = [i for i, row in enumerate(rows) if row["execution"] == execution]
        known = [(i, ap) for i in own if (ap := average_precision(rows[i])) is not None]
        front = pareto_front([(rows[i]["latency_ms"]["median"], ap) for i, ap in known])
        best |= {known[place][0] for place in front}
    lines = [[*line, "yes" if i in best else ""] for i, line in enumerate(table.lines)]
    return Table([*table.header, "front"], lines)


def _audit_section(rows: Sequence[Row], name: str, class_name: str) -> Section:
    newest = {(row["form"], row["execution"], row["keep_ratio"]): row for row in rows}
    rows, setup = list(newest.values()), rows[-1]["setup"]
    return Section(
        f"Audit of {setup['model']}",
        tables=[("Parts", parts_table(rows))],
        notes=[AUDIT_EXPLANATION],
        settings=_settings(rows[-1], setup),
    )


def _steps_section(rows: Sequence[Row], name: str, class_name: str) -> Section:
    newest = {(row["step"], row["keep_ratio"]): row for row in rows}
    rows, setup = list(newest.values()), rows[-1]["setup"]
    figures = []
    for ratio in dict.fromkeys(row["keep_ratio"] for row in rows):
        own = [row for row in rows if row["keep_ratio"] == ratio]
        caption = f"Keep ratio {ratio:g}. The lines are what no pruning removes."
        figures.append(Picture(f"{name}_{ratio:g}", _svg(audit_figure([], own)), caption))
    return Section(
        f"What each step saves of {setup['model']}",
        figures=figures,
        tables=[("Steps", steps_table(rows))],
        settings={key: str(value) for key, value in setup.items()},
    )


def _ablation_section(rows: Sequence[Row], name: str, class_name: str) -> Section:
    newest = {(row["arm"], row["seed"]): row.get("recipe") for row in rows}
    rows = [row for row in rows if row.get("recipe") == newest[row["arm"], row["seed"]]]
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    reference = rows[-1].get("reference", arms[0])
    tables = []
    for metric in (f"AP/{class_name}", "AP"):
        if any(metric in row["metrics"] for row in rows):
            caption = (
                f"{metric} in points, and the difference from {reference} [95 % of the images]"
            )
            tables.append((caption, ablation_table(rows, arms, metric, reference)))
    seeds = sorted({row["seed"] for row in rows})
    return Section(
        "Ablation",
        tables=tables,
        notes=[
            "Every arm is a training from the same start on the same images with one switch "
            f"changed. Seeds: {', '.join(map(str, seeds))}. Intervals: a paired bootstrap over the "
            "validation images."
        ],
        settings=_settings(rows[-1], {"overrides of all": " ".join(rows[-1].get("base") or ())}),
    )


def _failures(rows: Sequence[Row]) -> list[Row]:
    """Returns the failed jobs and arms that have not succeeded later."""
    jobs = [row for row in rows if row.get("kind") in ("sweep", "failed") and "overrides" in row]
    arms = {
        (row["arm"], row["seed"]): row
        for row in rows
        if row.get("kind") in ("ablation", "failed") and "arm" in row
    }
    return failed_jobs(jobs) + [row for row in arms.values() if row["kind"] == "failed"]


def _failed_section(rows: Sequence[Row]) -> Section:
    names = [row.get("arm") or " ".join(row["overrides"]) for row in rows]
    return Section(
        "Failed",
        findings=[
            f"{name}: {row['error'].strip()[-_ERROR_LENGTH:]}"
            for name, row in zip(names, rows, strict=True)
        ],
    )


def _scale_section(rows: Sequence[Row], name: str, class_name: str) -> Section:
    newest = {(row["width"], row["execution"], row.get("keep_ratio")): row for row in rows}
    rows = [{**row, "execution": _with_ratio(row)} for row in newest.values()]
    caption = "The same picture on larger and larger canvases: the objects stay as many."
    return Section(
        "Time against the size of the image",
        figures=[Picture(f"{name}_scale", _svg(scale_figure(rows)), caption)],
        tables=[("Measured", measured_table(rows)), ("How it grows", summary_table(rows))],
        settings=_settings(rows[-1], {"checkpoint": rows[-1].get("checkpoint")}),
    )


def _with_ratio(row: Row) -> str:
    ratio = row.get("keep_ratio")
    return row["execution"] if ratio is None else f"{row['execution']}@{ratio:g}"


def _comparison_section(rows: Sequence[Row], name: str, class_name: str) -> Section:
    newest = {(row["case"], row["arm"]): row for row in rows}
    rows = list(newest.values())
    return Section(
        f"Comparison: {rows[-1]['target']}",
        tables=[("Rows", comparisons_table(rows))],
        settings=_settings(rows[-1], {}),
    )


def _settings(row: Row, setup: Mapping[str, Any]) -> dict[str, str]:
    timing = {key: row[key] for key in ("warmup", "repeats", "images") if key in row}
    when = {"last row": row["time"]} if "time" in row else {}
    known = {**setup, **timing, **row.get("environment", {}), **when}
    return {key: str(value) for key, value in known.items() if value not in (None, "")}


def _svg(figure: Figure) -> str:
    """Returns a figure as an element for a page; the same figure is the same text."""
    file = io.StringIO()
    with rc_context({"svg.hashsalt": "sparse_dset"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]
