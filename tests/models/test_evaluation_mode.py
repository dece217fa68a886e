"""Predicting leaves a model as it is, whatever else happens to it meanwhile."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparse_dset.models.evaluation_mode import evaluation, switched_to_evaluation
from sparse_dset.ops import resolve_backend, use_backend
from tests.models.detectors import make_detector, make_targets
from tests.models.training import losses_of


@pytest.fixture(autouse=True)
def _one_thread_each() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _state(model: nn.Module) -> tuple[list[bool], dict[str, Tensor]]:
    modes = [module.training for module in model.modules()]
    return modes, {name: value.clone() for name, value in model.state_dict().items()}


def _assert_same_state(own: tuple, before: tuple) -> None:
    assert own[0] == before[0]
    torch.testing.assert_close(own[1], before[1], rtol=0, atol=0)


def _found(model: Any, picture: Tensor, execution: str = "sparse") -> dict[str, Any]:
    (one,) = model.predict([picture], threshold=0.0, execution=execution)
    return {name: one[name] for name in ("boxes", "scores", "labels", "kept")}


def _pictures(count: int) -> list[Tensor]:
    return [torch.rand(3, 64 + 16 * i, 96) for i in range(count)]


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("nano", ()),
        ("nano", ("pruner=early",)),
        ("nano", ("model.backbone.frozen=[blocks.0]",)),
    ],
    ids=["nano", "early", "frozen"],
)
@pytest.mark.parametrize("mode", [True, False])
def test_threads_find_what_one_thread_finds_and_change_nothing(
    name: str, overrides: tuple[str, ...], mode: bool
) -> None:
    model = make_detector(name, "model.image_size=[64,96]", *overrides, dtype=torch.float32)
    pictures = _pictures(3)
    executions = ["sparse", "dense", "masked", "sparse"]
    jobs = [(picture, execution) for execution in executions for picture in pictures]
    expected = [_found(model.eval(), *job) for job in jobs]
    before = _state(model.train(mode))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda job: _found(model, *job), jobs))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    _assert_same_state(_state(model), before)


def test_a_model_of_which_a_part_is_in_training_keeps_its_parts_modes() -> None:
    model = make_detector("nano", "model.image_size=[64,96]", dtype=torch.float32)
    picture = torch.rand(3, 64, 96)
    expected = _found(model, picture)
    model.backbone.train()
    before = _state(model)
    torch.testing.assert_close(_found(model, picture), expected, rtol=0, atol=0)
    _assert_same_state(_state(model), before)


@pytest.mark.parametrize("mode", [True, False])
def test_an_error_or_a_prediction_within_one_leaves_no_trace(mode: bool) -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout()).train(mode)
    with contextlib.suppress(KeyError), evaluation(model) as network:
        with evaluation(network) as inner:
            assert not inner.training
        assert not any(module.training for module in network.modules())
        raise KeyError
    assert all(module.training == mode for module in model.modules())
    with evaluation(model) as network:
        assert not network[1].training
        assert model[1].training == mode


@pytest.mark.parametrize("mode", [True, False])
def test_the_mode_that_is_set_meanwhile_is_kept(mode: bool) -> None:
    model = make_detector("nano", "model.image_size=[64,96]", dtype=torch.float32)
    picture = torch.rand(3, 64, 96)
    expected = _found(model, picture)
    model.train(mode)
    inside, switched = threading.Event(), threading.Event()

    def wait(*_: Any) -> None:
        inside.set()
        switched.wait(0.3)  # what is set now must not reach this prediction

    def switch() -> None:
        inside.wait()
        model.train(not mode)
        switched.set()

    handle = model.backbone.register_forward_hook(wait)
    other = threading.Thread(target=switch)
    other.start()
    found = _found(model, picture)
    other.join()
    handle.remove()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert model.training == (not mode)
    assert model.encoder.training == (not mode)


def test_training_goes_on_while_others_predict() -> None:
    model = make_detector("nano", "model.image_size=[64,96]", dtype=torch.float32)
    images, targets = torch.rand(2, 3, 64, 96), make_targets(2, 1)
    inside, trained = threading.Event(), threading.Event()

    def wait(module: nn.Module, *_: Any) -> None:
        if not module.training:
            inside.set()
            assert trained.wait(60)

    def losses() -> dict[str, Tensor]:
        torch.manual_seed(0)
        return {name: term.detach() for name, term in losses_of(model, images, targets).items()}

    model.train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    expected = losses()
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(before[name])
    model.backbone.register_forward_hook(wait)
    with ThreadPoolExecutor(1) as pool:
        prediction = pool.submit(_found, model, torch.rand(3, 64, 96))
        assert inside.wait(60)
        torch.testing.assert_close(losses(), expected)  # with denoising and statistics of its own
        trained.set()
        prediction.result()


def test_what_is_given_shares_weights_and_hooks_and_refers_to_itself() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(2)
            self.steps = [("norm", self.norm)]
            self.run = self.one_step
            self.seen: list[int] = []

        def one_step(self, x: Tensor) -> Tensor:
            self.seen.append(len(x))
            return self.steps[0][1](x) if not self.training else x * torch.nan

        def forward(self, x: Tensor) -> Tensor:
            return self.run(x)

    model, calls = Holder(), []
    model.norm.register_forward_hook(lambda *_: calls.append(1))
    model.compile(backend="eager")
    with evaluation(model) as network:
        model.norm.weight.data.mul_(3.0)
        model.norm.running_mean = torch.ones(2)  # as .to() and load_state_dict(assign=True) do
        out = network(torch.ones(4, 2))
    assert out.abs().max() < 1e-6
    assert (calls, model.seen) == ([1], [4])
    assert int(model.norm.num_batches_tracked) == 0


def test_the_modules_themselves_are_switched_for_who_watches_them() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    with contextlib.suppress(KeyError), switched_to_evaluation(model):
        assert not model[0].training
        raise KeyError
    assert [module.training for module in model] == [True, False]


def test_a_backend_is_chosen_for_the_own_thread() -> None:
    with use_backend("reference"), ThreadPoolExecutor(1) as pool:
        here = resolve_backend("auto", "cpu")
        there = pool.submit(resolve_backend, "auto", "cpu").result()
    assert here.name == "reference"
    assert there == resolve_backend("auto", "cpu")
