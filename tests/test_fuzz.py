"""What the package makes of inputs that are wrong at random, and that the harness sees faults."""

from __future__ import annotations

import functools
import os
import time

import pytest
import torch

from sparse_dset.checks import check_number
from sparse_dset.fuzz.operators import _operator_arguments, registered
from sparse_dset.fuzz.outcome import (
    CRASH,
    FOREIGN,
    HANG,
    MEMORY,
    OUR_ERROR,
    RESULT,
    Outcome,
    outcome_of,
)
from sparse_dset.fuzz.run import Limits, count_table, faults, run_inputs
from sparse_dset.fuzz.targets import TARGETS, numbered, perform

LIMITS = Limits(seconds=60)


def _misbehave(number: int, target: str) -> Outcome:
    held = []
    try:
        if number == 1:
            time.sleep(60)
        elif number == 2:
            os.abort()
        elif number == 3:
            for _ in range(400):
                held.append(torch.ones(2**20))
                time.sleep(0.01)
        elif number == 4:
            {}["no message of ours"]
        elif number == 5:
            torch.ones(2) @ torch.ones(3)
        elif number == 6:
            check_number("a setting", -1, at_least=0)
        elif number == 7:
            torch.ops.sparse_dset.window_table(torch.zeros(1), torch.zeros(1), 3, 1)
    except Exception as error:
        return outcome_of(error)
    return Outcome(RESULT)


def test_the_harness_tells_a_hang_a_crash_a_memory_hog_and_foreign_errors_and_goes_on() -> None:
    inputs = [(number, f"target {number}") for number in range(9)]
    rows = list(run_inputs(inputs, _misbehave, Limits(seconds=8, megabytes=400)))
    kinds = [RESULT, HANG, CRASH, MEMORY, FOREIGN, FOREIGN, OUR_ERROR, OUR_ERROR, RESULT]
    assert [row["outcome"] for row in rows] == kinds
    assert [(row["number"], row["target"]) for row in rows] == inputs
    assert [row["number"] for row in faults(rows)] == [1, 2, 3, 4, 5]
    assert "| all | 9 | 2 | 2 | 2 | 1 | 1 | 1 |" in count_table(rows)


def test_an_input_follows_from_its_number() -> None:
    first, second = (list(numbered(range(50), 3, list(TARGETS))) for _ in range(2))
    assert first == second
    assert len({target for _, target in first}) > 3
    assert perform(11, "operators", seed=5) == perform(11, "operators", seed=5)


def test_every_registered_operator_is_called_with_arguments() -> None:
    from random import Random

    without = {name for name in registered() if not _operator_arguments(Random(0), name)}
    assert without == {"get_costs", "cpu_capability"}


@pytest.mark.parametrize("name", ["operators", "structures", "selection", "targets", "checkpoints"])
def test_wrong_inputs_give_a_result_or_an_error_of_ours(name: str) -> None:
    inputs = [(number, name) for number in range(40 if name == "checkpoints" else 150)]
    rows = list(run_inputs(inputs, functools.partial(perform, seed=1), LIMITS))
    assert {row["outcome"] for row in rows} == {RESULT, OUR_ERROR}, faults(rows)


@pytest.mark.slow
def test_a_minute_of_wrong_inputs_gives_results_or_errors_of_ours() -> None:
    inputs = numbered(range(1_000_000), 2, list(TARGETS))
    rows = list(run_inputs(inputs, functools.partial(perform, seed=2), LIMITS, seconds=60))
    assert len(rows) > 1000
    assert not faults(rows)
