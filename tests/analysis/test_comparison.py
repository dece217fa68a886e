"""Arms are compared before they are timed, on inputs that are new in every round."""

from __future__ import annotations

import pytest
import torch

from sparse_dset.analysis.comparison import Comparison, compare, format_comparisons


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
