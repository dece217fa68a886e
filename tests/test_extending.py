"""The examples of docs/extending.md, as they stand there, and a training step with all of them."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest
import torch

from sparse_dset.config import build_from_config
from sparse_dset.ops.backends import REFERENCE

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
LONGEST = 30


def _examples() -> dict[str, str]:
    """The code of each section, by its title."""
    text = PAGE.read_text()
    found = re.findall(r"^## (.*?)\n.*?^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return dict(found)


@pytest.fixture(scope="module")
def outside() -> types.ModuleType:
    """A module that holds all that the examples define."""
    module = types.ModuleType("extending")
    sys.modules["extending"] = module
    for code in _examples().values():
        exec(compile(code, str(PAGE), "exec"), module.__dict__)
    return module


def test_every_kind_has_an_example_that_is_short() -> None:
    examples = _examples()
    kinds = ("backend", "execution", "backbone", "selector", "loss", "hook")
    assert [title.split()[-1] for title in examples] == list(kinds)
    for code in examples.values():
        assert len([line for line in code.splitlines() if line.strip()]) <= LONGEST


def test_a_step_is_trained_with_all_of_them(outside: types.ModuleType) -> None:
    torch.manual_seed(0)
    model = build_from_config(outside.config).train()
    assert isinstance(model.backbone, outside.Strides)
    model.check_decision()
    model.backend, model.execution = outside.Counting(), outside.CoarseIsWhole()
    model.pruner.selector = outside.AtMost(keep_ratio=0.5, cells=4)
    images = torch.rand(2, 3, 64, 96)
    targets = [{"labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.4, 0.3, 0.2]])}] * 2
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    before = {name: value.clone() for name, value in model.named_parameters()}
    out = model(images, targets)
    losses = outside.criterion(out, targets)
    sum(losses.values()).backward()
    optimizer.step()

    assert (out.backend, out.execution) == ("counting", "coarse_is_whole")
    assert model.backend.calls[16, 16, 3, 3] >= 2  # the stages after the decision
    assert out.num_kept[:, 2].tolist() == out.num_tokens[:, 2].tolist() == [6, 6]
    assert (out.num_kept[:, 1] <= 4).all()
    assert losses["loss_undecided"] > 0
    for name in ("backbone.stages.3.conv.weight", "pruner.scorer.heads.0.mlp.0.weight"):
        assert not torch.equal(before[name], model.get_parameter(name)), name


def test_the_execution_is_sparse_where_it_prunes(outside: types.ModuleType) -> None:
    model, images = outside.model.eval(), torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        out = model(images, execution=outside.CoarseIsWhole())
        same = model(images, execution="sparse", kept=out.kept)
    torch.testing.assert_close(out.pred_boxes, same.pred_boxes)


def test_the_backend_changes_nothing(outside: types.ModuleType) -> None:
    model, images = outside.model.eval(), torch.rand(1, 3, 64, 96)
    outputs = []
    for backend in (REFERENCE, outside.Counting()):
        model.backend = backend
        with torch.no_grad():
            outputs.append(model(images, execution="sparse", keep_ratio=0.5).pred_boxes)
    assert torch.equal(*outputs)


def test_the_hook_asks_for_an_end(outside: types.ModuleType) -> None:
    (hook,) = outside.own_hooks
    result = types.SimpleNamespace(values={"loss": 0.6})
    hook.after_step(None, result)
    assert not hook.wants_stop(None)
    result.values["loss"] = 0.4
    hook.after_step(None, result)
    assert hook.wants_stop(None)
