"""Arms are compared before they are timed, on inputs that are new in every round."""

from __future__ import annotations

import pytest
import torch

from sparse_dset import native
from sparse_dset.benchmark.comparison import (
    Comparison,
    compare,
    comparison_notes,
    comparisons_table,
    format_comparisons,
)


def _comparison(**options):
    drawn = []

    def make_inputs():
        drawn.append(torch.randn(4))
        return (drawn[-1],)

    arms = {"plain": lambda x: 2 * x, "sum": lambda x: x + x, "other": lambda x: None}
    return Comparison("doubling", make_inputs, arms, **options), drawn


def test_rows():
    comparison, drawn = _comparison(ideal=2.0)
    rows = compare(comparison, warmup=1, repeats=3)
    assert [row["arm"] for row in rows] == ["plain", "sum", "other"]
    assert rows[0]["speedup"] == 1.0
    assert rows[0]["of_ideal"] == 0.5
    assert [row["error"] for row in rows] == [0.0, 0.0, None]
    assert len({tuple(x.tolist()) for x in drawn}) == len(drawn) > 4
    table = format_comparisons(rows).splitlines()
    assert len(table) == 2 + 3
    assert table[2].startswith("| doubling | plain |")
    assert format_comparisons(rows, header=False).splitlines() == table[2:]


def test_an_arm_that_computes_something_else_is_not_timed():
    comparison, _ = _comparison(expected=lambda x: 2.1 * x)
    with pytest.raises(RuntimeError, match="doubling: plain differs by .* its time cannot be"):
        compare(comparison, warmup=1, repeats=1)


def _row(arm, median, role, case="lite0", **environment):
    latency = {"median": median, "p10": median, "p90": median}
    known = {"cpu": "a processor", "threads": 2, "device": "cpu", "instruction_set": "AVX2"}
    return {
        "case": case,
        "arm": arm,
        "role": role,
        "latency_ms": latency,
        "environment": {**known, **environment},
    }


def test_a_faster_peer_is_named_under_the_table():
    rows = [_row("our dense", 104.0, "ours"), _row("sparse 0.1", 64.0, "pruned")]
    measured = "Measured with 2 threads, AVX2, a processor."
    peers = [_row("ONNX Runtime", 104.1, "peer"), _row("OpenVINO", 80.0, "peer")]
    assert comparison_notes([*rows, peers[0]]).splitlines() == [measured]
    assert comparison_notes([*rows, *peers]).splitlines() == [
        measured,
        "lite0: fastest: OpenVINO, 80 ms, 1.30x faster than our dense (104 ms)",
    ]
    # Of ours, the fastest counts; each case for itself.
    more = [_row("sparse 1", 70.0, "ours"), _row("ours", 3.0, "ours", "r18")]
    more.append(_row("oneDNN", 2.0, "peer", "r18"))
    assert comparison_notes([*rows, *peers, *more]).splitlines()[1:] == [
        "r18: fastest: oneDNN, 2 ms, 1.50x faster than ours (3 ms)"
    ]


def test_hardware_is_named_as_often_as_there_is_another():
    rows = [_row("a", 1.0, "ours"), _row("b", 1.0, "ours", threads=1, instruction_set="AVX-512")]
    assert comparison_notes(rows) == (
        "Measured with 2 threads, AVX2, a processor; and with 1 thread, AVX-512, a processor.\n"
    )
    assert comparison_notes([_row("a", 1.0, "ours", device="a GPU")]) == "Measured with a GPU.\n"
    before = {"threads": 2, "cpu": "a processor", "device": "cpu"}  # of rows that were written then
    row = {**_row("a", 1.0, "ours"), "environment": before}
    assert comparison_notes([row]) == "Measured with 2 threads, a processor.\n"
    assert comparison_notes([{**row, "environment": {}}]) == "Measured with a CPU.\n"


def test_roles_of_arms():
    comparison, _ = _comparison(peers={"plain"}, pruned=["other"])
    rows = compare(comparison, warmup=1, repeats=1)
    assert [row["role"] for row in rows] == ["peer", "ours", "pruned"]
    assert rows[0]["environment"]["instruction_set"] == native.instruction_set()


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [(0.50149, "0.501"), (28.44, "28.4"), (999.4, "999"), (999.7, "1000"), (4771.3, "4771")],
)
def test_times_are_written_without_an_exponent(milliseconds: float, text: str) -> None:
    row = _row("plain", milliseconds, "ours") | {"speedup": 1.0}
    assert comparisons_table([row]).lines[0][2] == f"{text} [{text}-{text}]"
