"""The report says what the rows say, and looks right in a browser and on paper."""

from __future__ import annotations

import functools
import json
import re
import runpy
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from sparse_dset.benchmark.plot import pareto_front
from sparse_dset.engine.loggers import append_row
from sparse_dset.report.page import _failures, make_report, read_all
from sparse_dset.report.sentences import break_even, describe_break_even, describe_saving

SCRIPT = Path(__file__).parents[2] / "scripts" / "report.py"
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
PARTS = ("backbone", "encoder", "neck", "decoder")


def _row(execution, ratio, ap, speedup, saved, **values):
    """A row of `measure`; the neck gives three quarters of what is saved, the decoder the rest."""
    gflops = {"backbone": 4.0, "encoder": 1.0, "neck": 3.0, "decoder": 2.0}
    gflops["neck"] -= 10.0 * saved * 0.75
    gflops["decoder"] -= 10.0 * saved * 0.25
    kept = 1.0 if execution == "dense" else ratio
    return {
        "kind": "benchmark",
        "setup": {"model": "nano <b>", "size": [384, 640], "threads": 2, "seed": 0},
        "time": "2026-01-01T00:00:00",
        "execution": execution,
        "keep_ratio": ratio,
        "kept": {"s3": kept, "s4": kept, "s5": kept},
        "gflops": {**gflops, "pruner": 0.1, "total": 10.0 * (1 - saved)},
        "gflops_saved": saved,
        "latency_ms": {"median": 100 / speedup, "p10": 90 / speedup, "p90": 120 / speedup},
        "part_ms": dict.fromkeys((*PARTS, "pruner"), 20 / speedup) | {"total": 110 / speedup},
        "speedup": speedup,
        "speedup_over_plain": 2 * speedup,
        "metrics": {"AP": ap, "AP/car": ap},
        "environment": {"cpu": "A processor", "torch": "2"},
        **values,
    }


def _benchmark_rows():
    return [
        _row("dense", 1.0, 0.500, 1.0, 0.0),
        _row("dense_scatter", 0.3, 0.400, 0.9, 0.0),
        _row("dense_scatter", 0.5, 0.490, 0.9, 0.0),
        _row("sparse", 0.1, 0.450, 4.0, 0.6),
        _row("sparse", 0.3, 0.497, 2.0, 0.4),
        _row("sparse", 0.5, 0.499, 1.2, 0.2),
        _row("sparse", 0.7, 0.498, 0.8, 0.1),
    ]


def _audit_rows():
    costs = {
        "gflops": 1.0,
        "gflops_computed": None,
        "ms": 1.0,
        "parameters": 1000,
        "mib_moved": 1.0,
    }
    setup = {"model": "r18", "size": [64, 96]}
    parts = dict.fromkeys(("backbone", "pruner", "encoder", "neck", "decoder"), costs)
    audit = {
        "kind": "audit",
        "setup": setup,
        "form": "published",
        "execution": "dense",
        "keep_ratio": 1.0,
        "parts": parts,
        "total": {**costs, "gflops": 5.0, "ms": 6.0},
    }
    gflops = {**dict.fromkeys(parts, 1.0), "total": 5.0}
    steps = [
        {
            "kind": "audit_step",
            "setup": setup,
            "step": step,
            "keep_ratio": 0.5,
            "gflops": gflops,
            "gflops_saved": 0.0,
        }
        for step in ("dense", "floor, late decision")
    ]
    return [audit, *steps]


def _all_rows():
    ablation = {
        "kind": "ablation",
        "base": ["experiment=x"],
        "arm": "base",
        "seed": 0,
        "execution": "dense",
        "keep_ratio": 1.0,
        "metrics": {"AP": 0.5},
        "samples": {},
    }
    scale = [
        {
            "kind": "scale",
            "width": width,
            "pixels": width * width,
            "execution": "sparse",
            "kept_cells": 5,
            "latency_ms": {"median": width / 10},
        }
        for width in (640, 1280)
    ]
    comparison = {
        "kind": "comparison",
        "target": "ops",
        "case": "a convolution",
        "arm": "ours",
        "latency_ms": {"median": 1.0, "p10": 1.0, "p90": 1.0},
        "speedup": 2.0,
        "of_ideal": None,
        "error": None,
        "saved_mib": None,
    }
    failed = {"kind": "failed", "overrides": ["model=r19"], "error": "ValueError: no r19"}
    other = [failed, {"kind": "epoch"}]
    return [*_benchmark_rows(), *_audit_rows(), ablation, *scale, comparison, *other]


def test_what_pruning_saved_where_and_at_what_ap():
    scatter, sparse = describe_saving(_benchmark_rows())
    assert scatter == "dense_scatter loses more than 0.5 points of AP at every keep ratio measured."
    assert sparse == (
        "sparse@0.3 has 49.7 AP (-0.3 against dense) and needs 40 % fewer GFLOPs and "
        "50 % less time than dense (75 % less than dense as published). Of the GFLOPs saved: "
        "neck 75 %, decoder 25 %."
    )


def test_without_ap_the_fastest_row_is_told():
    rows = [row | {"metrics": None} for row in _benchmark_rows()]
    assert describe_saving(rows)[-1].startswith("sparse@0.1 needs 60 % fewer GFLOPs")


def test_rows_without_ap_are_passed_over_and_any_whole_row_is_the_reference():
    rows = _benchmark_rows()
    rows[3] |= {"metrics": None}  # the sweep was killed before its AP
    assert describe_saving(rows)[-1].startswith("sparse@0.3 has 49.7 AP (-0.3 against dense)")
    whole = _row("sparse", 1.0, 0.5, 0.7, 0.0)
    (found,) = describe_saving([*_benchmark_rows()[3:], whole])
    assert found.startswith("sparse@0.3 has 49.7 AP (-0.3 against dense)")
    (found,) = describe_saving(_benchmark_rows()[3:])
    assert found.startswith("sparse@0.1 has 45.0 AP and needs")


def test_break_even():
    assert break_even([(0.1, 2.0), (0.5, 1.5), (0.9, 0.5)]) == pytest.approx(0.7)
    assert break_even([(0.1, 2.0), (1.0, 1.1)]) is None
    assert break_even([(0.1, 0.9), (0.5, 1.2), (1.0, 1.1)]) is None
    assert break_even([(0.1, 1.2), (0.5, 0.9), (0.6, 1.1), (1.0, 0.9)]) is None

    def told(*speedups):
        rows = [_row("sparse", (i + 1) / 10, 0.5, s, 0.0) for i, s in enumerate(speedups)]
        return describe_break_even(rows)[0].removeprefix("sparse is ").removesuffix(".")

    ending = ", of those measured"
    assert told(2.0, 1.0) == f"faster than dense below a keep ratio of 0.20{ending}"
    assert told(2.0, 1.5) == f"faster than dense at every keep ratio{ending}"
    assert told(0.9, 0.8) == f"not faster than dense at any keep ratio{ending}"
    assert told(0.9, 1.2) == f"faster than dense at a keep ratio of 0.2{ending}"


def test_the_front_holds_what_nothing_beats():
    assert pareto_front([(3, 5), (1, 2), (2, 2), (4, 5), (2, 4)]) == [1, 4, 0]
    assert pareto_front([]) == []


def test_every_kind_of_row_has_a_section():
    report = make_report(_all_rows(), "a title")
    titles = [section.title for section in report.sections]
    assert titles == [
        "nano <b>, 640 x 384 pixels",
        "Audit of r18",
        "What each step saves of r18",
        "Ablation",
        "Time against the size of the image",
        "Comparison: ops",
        "Failed",
        "Left out",
    ]
    table = report.sections[0].tables[0][1]
    assert table.header[-1] == "front"
    assert {tuple(line[:2]): line[-1] for line in table.lines} == {
        ("dense", "1"): "yes",
        ("dense_scatter", "0.3"): "",
        ("dense_scatter", "0.5"): "yes",
        ("sparse", "0.1"): "yes",
        ("sparse", "0.3"): "yes",
        ("sparse", "0.5"): "yes",
        ("sparse", "0.7"): "",
    }
    assert report.sections[0].settings["cpu"] == "A processor"
    text = report.markdown()
    assert "![Each point" in text
    assert "| dense_scatter " in text


def test_failures_are_told_until_they_are_mended():
    mended = {"kind": "sweep", "overrides": ["model=r19", "resume=true"], "job": "a"}
    broken = {"kind": "failed", "arm": "a", "seed": 0, "error": "x" * 600}
    arms = [broken, broken | {"arm": "b"}, {"kind": "ablation", "arm": "b", "seed": 0}]
    assert [row["error"] for row in _failures(_all_rows())] == ["ValueError: no r19"]
    assert _failures([*_all_rows(), mended, *arms]) == [broken]
    (finding,) = make_report([*_benchmark_rows(), broken], "t").sections[-1].findings
    assert finding == "a: " + "x" * 500


def test_rows_of_older_versions_are_shown():
    """They lack what was added later."""
    later = {"part_ms", "speedup_over_plain", "base", "environment", "time", "kept", "seed"}
    later |= {"saved_mib", "of_ideal", "error"}
    rows = [
        {
            key: value
            for key, value in row.items()
            if key not in later or (row["kind"], key) in (("failed", "error"), ("ablation", "seed"))
        }
        for row in _all_rows()
    ]
    report = make_report(rows, "a title")
    assert len(report.sections) == 8
    assert "sparse@0.3" in report.markdown()


def test_what_cannot_be_compared_stands_apart():
    rows = [_row("sparse", ratio, 0.5, 2.0, 0.4) for ratio in (0.3, 0.5)]
    rows[1] |= {"environment": {"cpu": "Another processor"}}
    assert len(make_report(rows, "t").sections) == 2
    rows[1] |= {"environment": rows[0]["environment"], "keep_ratio": 0.3}
    assert len(make_report(rows, "t").sections[0].tables[0][1].lines) == 1
    rows[1] |= {"selection": {"halo": 1, "offsets": {"s4": -1.5}}}
    table = make_report(rows, "t").sections[0].tables[0][1]
    assert table.header[2] == "selection"
    assert [line[2] for line in table.lines] == ["-", "halo 1, s4 -1.50"]


class _Page(HTMLParser):
    """Collects what a page would load, and whether its elements close."""

    def __init__(self):
        super().__init__()
        self.loads, self.open, self.tags = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [
            value
            for name, value in attrs
            if name in ("src", "href", "xlink:href") and not value.startswith("#")
        ]
        if tag not in ("meta", "br", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_needs_no_other_file_and_nothing_in_it_is_code():
    html = make_report(_all_rows(), "<script>alert(1)</script>").html()
    page = _Page()
    page.feed(html)
    assert page.open == []
    assert page.loads == []
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert page.tags.count("svg") >= 5
    assert html == make_report(_all_rows(), "<script>alert(1)</script>").html()


def test_rows_are_read_from_files_and_folders(tmp_path):
    append_row(tmp_path / "a" / "b" / "results.jsonl", {"kind": "x"})
    append_row(tmp_path / "c.jsonl", {"kind": "y"})
    assert read_all([tmp_path / "a", tmp_path / "c.jsonl"]) == [{"kind": "x"}, {"kind": "y"}]
    append_row(tmp_path / "new.jsonl", {"kind": "z", "time": "2"})
    append_row(tmp_path / "old.jsonl", {"kind": "z", "time": "1"})
    rows = read_all([tmp_path / "new.jsonl", tmp_path / "old.jsonl"])
    assert [row["time"] for row in rows] == ["1", "2"]  # the newest counts
    (tmp_path / "empty").mkdir()
    for path in ("empty", "missing"):
        with pytest.raises(FileNotFoundError, match=path):
            read_all([tmp_path / path])
    with pytest.raises(ValueError, match="none of 1 rows can be shown; kinds that can are bench"):
        make_report([{"kind": "x"}], "t")


def test_the_script(tmp_path, monkeypatch, capsys):
    for row in _benchmark_rows():
        append_row(tmp_path / "rows" / "results.jsonl", row)
    arguments = [f"rows={tmp_path / 'rows'}", f"output_dir={tmp_path / 'out'}"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    said = capsys.readouterr().out
    assert "sparse@0.3 has 49.7 AP" in said
    text = (tmp_path / "out" / "report.md").read_text()
    pictures = re.findall(r"\((.*\.svg)\)", text)
    assert len(pictures) == 3
    assert all((tmp_path / "out" / name).exists() for name in pictures)


@functools.cache
def _flags(folder):
    return [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={folder / 'profile'}",
    ]


MEASURE = """<script>addEventListener("load", () => {
  const root = document.documentElement;
  const small = [...document.querySelectorAll("figure svg")].map(e => e.getBoundingClientRect());
  document.title = JSON.stringify({
    width: root.clientWidth,
    scroll: root.scrollWidth,
    figures: small.map(r => [r.width, r.height]),
    cut: [...document.querySelectorAll(".wide")].filter(e => e.scrollWidth > e.clientWidth).length,
    text: document.body.innerText.length,
  });
});</script></body>"""


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here")
@pytest.mark.parametrize("width", [1280, 820])
def test_in_a_browser(tmp_path, width):
    """No part is wider than the window; what is too wide for a small one scrolls on its own."""
    page = tmp_path / "report.html"
    page.write_text(make_report(_all_rows(), "t").html().replace("</body>", MEASURE))
    command = [*_flags(tmp_path), f"--window-size={width},800", "--dump-dom", page.as_uri()]
    dumped = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    seen = json.loads(re.search(r"<title>(.*?)</title>", dumped).group(1).replace("&quot;", '"'))
    assert 0.9 * width < seen["width"] <= width
    assert seen["scroll"] <= seen["width"]
    assert all(200 < w <= seen["width"] and h > 100 for w, h in seen["figures"])
    assert seen["text"] > 1500
    if width == 1280:
        assert seen["cut"] == 0


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here")
def test_in_print(tmp_path):
    page, pdf = tmp_path / "report.html", tmp_path / "report.pdf"
    page.write_text(make_report(_all_rows(), "t").html())
    command = [*_flags(tmp_path), f"--print-to-pdf={pdf}", page.as_uri()]
    subprocess.run(command, capture_output=True, timeout=120, check=True)
    content = pdf.read_bytes()
    assert content.startswith(b"%PDF")
    assert 2 <= len(re.findall(rb"/Type\s*/Page[^s]", content)) <= 9
