from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sparse_dset.benchmark.table import format_table, latest, markdown_table, results_table
from sparse_dset.engine.loggers import read_rows


def row(execution: str, keep_ratio: float, *, ap: float | None = None, **values: Any) -> dict:
    """A row as `measure` gives it."""
    share = 1.0 if execution == "dense" else keep_ratio
    made = {
        "execution": execution,
        "keep_ratio": keep_ratio,
        "kept": {"s3": share, "s4": share, "s5": share},
        "gflops": {"backbone": 5.0, "total": 10.0 * share},
        "gflops_saved": 1.0 - share,
        "latency_ms": {"median": 100.0 * share, "p10": 95.0 * share, "p90": 120.0 * share},
        "speedup": 1 / share,
        **values,
    }
    if ap is not None:
        made["metrics"] = {"AP": ap, "AP50": 2 * ap, "AP/car": ap + 0.1} | {
            f"kept_{level}": share for level in ("s3", "s4", "s5")
        }
    return made


def cells(table: str) -> list[list[str]]:
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_number_stands_in_its_column() -> None:
    table = format_table([row("sparse", 0.25, ap=0.312), row("dense", 1.0, ap=0.4)])
    header, _, dense, sparse = cells(table)
    assert dict(zip(header, sparse, strict=True)) == {
        "execution": "sparse",
        "keep ratio": "0.25",
        "kept % S3/S4/S5": "25/25/25",
        "AP": "31.2",
        "AP50": "62.4",
        "car AP": "41.2",
        "GFLOPs": "2.50",
        "saved %": "75.0",
        "latency ms": "25.0 [23.8-30.0]",
        "speed-up": "4.00x",
    }
    assert dense[0] == "dense"
    assert "speed-up: over dense" in table


def test_columns_that_no_row_fills_are_left_out_and_gaps_are_dashes() -> None:
    header = cells(format_table([row("dense", 1.0)]))[0]
    assert "AP" not in header
    assert "GFLOPs" in header
    _, _, dense, sparse = cells(format_table([row("dense", 1.0), row("sparse", 0.5, ap=0.2)]))
    assert dense[3] == "-"
    assert sparse[3] == "20.0"


def test_counted_tokens_of_the_evaluation_win_over_those_of_the_batch() -> None:
    one = row("sparse", 0.5, ap=0.2)
    one["kept"] = {"s3": 0.9, "s4": 0.9, "s5": 0.9}
    assert cells(format_table([one]))[2][2] == "50/50/50"


def test_a_later_row_replaces_an_earlier_one_and_order_is_fixed() -> None:
    rows = [row("sparse", 0.5, ap=0.1), row("sparse", 0.30000000000000004), row("dense", 1.0)]
    kept = latest([*rows, row("sparse", 0.3, ap=0.7), row("sparse", 0.5, ap=0.2)])
    assert [(r["execution"], r["keep_ratio"]) for r in kept] == [
        ("dense", 1.0),
        ("sparse", 0.3),
        ("sparse", 0.5),
    ]
    assert kept[2]["metrics"]["AP"] == 0.2


def test_no_rows_are_an_error() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        format_table([])


def test_lines_of_a_table_are_equally_long() -> None:
    lines = markdown_table(["name", "v"], [["a", "1"], ["longer name", "12345"]]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1] == "| ----------- | ----: |"


def test_a_line_that_was_cut_short_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text('{"a": 1}\n{"a": \n{"a": 2}\n')
    with pytest.warns(UserWarning, match="line 2 is cut short"):
        assert read_rows(path) == [{"a": 1}, {"a": 2}]


def test_the_hardware_stands_under_the_table() -> None:
    known = {"cpu": "a processor", "threads": 2, "device": "cpu", "instruction_set": "AVX-512"}
    table = format_table([row("dense", 1.0, environment=known)])
    assert "\n\nMeasured with 2 threads, AVX-512, a processor.\n" in table
    assert "Measured with" not in format_table([row("dense", 1.0)])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a|b", "a\\|b"),
        ("<b>", "\\<b>"),
        ("$x^2$", "\\$x^2\\$"),
        ("two\nlines", "two\\nlines"),
        ("a\\|", "a\\\\\\|"),
        ("日本", "日本"),
        ("", ""),
    ],
)
def test_text_is_text_in_markdown(text: str, shown: str) -> None:
    header, rule, line = markdown_table(["metric", text], [[text, "1"]]).split("\n")
    assert len(header) == len(rule) == len(line)
    assert header.split(" | ", 1)[1].removesuffix(" |").strip() == shown
    assert line.removeprefix("| ").rsplit(" | ", 1)[0].strip() == shown


@pytest.mark.parametrize("value", [None, float("nan")])  # of a row, and of a measurement
def test_a_metric_that_is_not_defined_is_not_available(value):
    row = {"execution": "dense", "keep_ratio": 1.0, "metrics": {"AP": 0.5, "AP/car": value}}
    table = results_table([row])
    cells = dict(zip(table.header, table.lines[0], strict=True))
    assert (cells["AP"], cells["car AP"]) == ("50.0", "n/a")
    assert "AP50" not in cells  # was not measured
