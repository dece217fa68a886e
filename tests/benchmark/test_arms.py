from __future__ import annotations

from typing import Any

import pytest

from sparse_dset.benchmark.arms import Arm, BenchmarkConfig, plan_arms


def test_dense_is_planned_once_and_ratios_are_rounded() -> None:
    arms = plan_arms(["dense", "sparse"], [0.1 + 0.2, 0.3, 1])
    assert [arm.name for arm in arms] == ["dense", "sparse@0.3", "sparse@1"]
    assert arms[1].keep_ratio == 0.3


@pytest.mark.parametrize("keep_ratio", [0, 1.5, "abc", -0.1, True])
def test_ratios_out_of_range_are_refused_even_where_only_dense_runs(keep_ratio: Any) -> None:
    with pytest.raises(ValueError, match=r"in \(0, 1\]"):
        plan_arms(["dense"], [keep_ratio])


def test_unknown_executions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"execution must be one of dense, .*'spars'"):
        plan_arms(["spars"], [0.3])
    with pytest.raises(ValueError, match="its keep_ratio is 1"):
        Arm("dense", 0.5)


@pytest.mark.parametrize(
    ("key", "value"), [("warmup", 0), ("repeats", 0), ("batch_size", 0), ("size", [16, 64])]
)
def test_settings_out_of_range_are_refused(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=key):
        BenchmarkConfig(**{"executions": ["dense"], "keep_ratios": [1.0], key: value})
