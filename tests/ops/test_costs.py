"""Prices are kept per machine, and wrong files are no trouble."""

from __future__ import annotations

import json

import pytest
import torch

from sparse_dset import native
from sparse_dset.ops import costs
from sparse_dset.ops.backends import CPU
from sparse_dset.structures import Support

pytestmark = pytest.mark.skipif(
    bool(native.unavailable_reason()), reason=native.unavailable_reason()
)

EVEN = dict.fromkeys(costs.NAMES, 1.0)


@pytest.fixture
def cost_file(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = torch.ops.sparse_dset.get_costs()
    yield costs.cost_file()
    torch.ops.sparse_dset.set_costs(before)


def _keep(path, prices):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({costs.machine(): prices}))


def test_prices_decide(cost_file):
    support = Support.full(1, 16, 16)
    for dear, expected in (("winograd4", "winograd2"), ("indirect", "winograd4")):
        prices = {**EVEN, "transform2": 0.0, "transform4": 0.0, "weight": 0.0, dear: 100.0}
        _keep(cost_file, prices)
        assert costs.load_costs()
        assert CPU.chosen_algorithm(support, 64, 64) == expected


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"x": 1', None])
def test_without_prices_the_compiled_ones_serve(content, cost_file):
    before = torch.ops.sparse_dset.get_costs()
    if content is not None:
        cost_file.parent.mkdir(parents=True, exist_ok=True)
        cost_file.write_text(content)
    assert not costs.load_costs()
    assert torch.ops.sparse_dset.get_costs() == before


@pytest.mark.slow
def test_measuring(cost_file, monkeypatch):
    monkeypatch.setattr(costs, "measure_costs", lambda: costs_of(repeats=3))
    costs.main()
    assert costs.load_costs()
    prices = json.loads(cost_file.read_text())[costs.machine()]
    assert prices["indirect"] > prices["winograd4"] > 0


costs_of = costs.measure_costs


def test_prices_are_taken_where_they_are_asked_for(cost_file):
    compiled = costs.prices()
    _keep(cost_file, EVEN)
    assert costs.prices() == compiled
    costs.prepare_cpu(None)
    assert costs.prices() == EVEN
    costs.prepare_cpu(None, "compiled")
    assert costs.prices() == compiled
    with pytest.raises(ValueError, match="ops.costs must be measured or compiled, got 'mine'"):
        costs.prepare_cpu(None, "mine")
