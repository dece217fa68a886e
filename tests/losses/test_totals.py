from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sparse_dset.losses.balance import load_balance_loss, router_counts
from sparse_dset.losses.totals import StepTotals, over_the_step
from tests.processes import in_two_processes


def test_a_pass_on_its_own_divides_by_what_it_counts() -> None:
    totals = StepTotals()
    assert float(totals.divisor("objects", torch.tensor(7.0))) == 7.0
    assert float(totals.divisor("cells", torch.tensor(0.25))) == 1.0  # nothing to divide by
    assert float(totals.mean("tokens", torch.tensor(0.25))) == 0.25
    assert {name: float(own) for name, own in totals.own.items()} == {
        "objects": 7.0,
        "cells": 0.25,
        "tokens": 0.25,
    }


def test_a_pass_of_a_step_divides_by_the_steps() -> None:
    totals = StepTotals({"objects": torch.tensor(12.0)})
    assert float(totals.divisor("objects", torch.tensor(5.0))) == 12.0
    assert float(totals.own["objects"]) == 5.0


@pytest.mark.parametrize(("counts", "expected"), [((3, 5), 4.0), ((0, 1), 0.5), ((0, 0), 0.5)])
def test_the_divisors_of_two_processes_are_half_of_one(
    counts: tuple[int, int], expected: float, tmp_path: Path
) -> None:
    # Gradients are averaged over the processes: two halves of the sums over 0.5 are the whole.
    def work(rank: int) -> tuple[Tensor, Tensor]:
        own = torch.tensor(float(counts[rank]))
        given = over_the_step([{"objects": own / 2}, {"objects": own / 2}])
        return StepTotals().divisor("objects", own), StepTotals(given).divisor("objects", own / 2)

    for alone, accumulated in in_two_processes(work, tmp_path):
        assert float(alone) == float(accumulated) == expected


def test_a_step_adds_up_values_of_any_shape() -> None:
    passes = [
        {"a": torch.tensor(1.0), "b": torch.eye(2)},
        {"a": torch.tensor(2.0), "b": torch.ones(2, 2)},
    ]
    total = over_the_step(passes)
    assert float(total["a"]) == 3.0
    assert total["b"].tolist() == [[2.0, 1.0], [1.0, 2.0]]
    assert over_the_step([{}, {}]) == {}


@pytest.mark.parametrize("sizes", [(5, 3), (0, 8), (1, 1, 0, 6)])
def test_parts_of_the_tokens_add_up_to_the_balance_of_all(sizes: tuple[int, ...]) -> None:
    probs = torch.rand(sum(sizes), 4).softmax(1)
    experts = probs.topk(2, 1).indices
    counts = router_counts(experts, 4)
    parts = [
        load_balance_loss(p, e, 4, counts)
        for p, e in zip(probs.split(sizes), experts.split(sizes), strict=True)
    ]
    torch.testing.assert_close(sum(parts), load_balance_loss(probs, experts, 4))
