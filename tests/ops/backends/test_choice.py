from __future__ import annotations

from collections import Counter

import pytest
import torch

from sparse_dset import build_detector
from sparse_dset.ops import dense_conv2d, pointwise_conv, sparse_conv2d
from sparse_dset.ops.backends import BACKENDS, CPU, REFERENCE, Backend, find_backend, use_backend
from sparse_dset.ops.backends.choice import NAMES, backend_for, resolve_backend
from sparse_dset.structures import Support


class Counting(Backend):
    """A backend of somebody else, which counts what it is asked for."""

    name = "counting"

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def sparse_conv2d(self, *arguments):
        self.calls["sparse_conv2d"] += 1
        return super().sparse_conv2d(*arguments)

    def sample(self, *arguments):
        self.calls["sample"] += 1
        return super().sample(*arguments)

    def pointwise_conv(self, *arguments):
        self.calls["pointwise_conv"] += 1
        return super().pointwise_conv(*arguments)

    def dense_conv2d(self, *arguments):
        self.calls["dense_conv2d"] += 1
        return super().dense_conv2d(*arguments)


def _convolution():
    support = Support.from_mask(torch.rand(1, 6, 7) < 0.5)
    return torch.randn(support.num_sites, 4), torch.randn(5, 4, 3, 3), None, support


def test_names_are_found_and_objects_are_themselves() -> None:
    assert NAMES == ("auto", "reference", "cpu", "spconv")
    assert [find_backend(name) for name in NAMES] == [None, *BACKENDS]
    own = Counting()
    assert find_backend(own) is own
    with pytest.raises(ValueError, match="choose one of auto, reference, cpu, spconv"):
        find_backend("tpu")


def test_an_object_computes_where_it_is_given() -> None:
    own, arguments = Counting(), _convolution()
    expected = sparse_conv2d(*arguments, backend="reference")
    torch.testing.assert_close(sparse_conv2d(*arguments, backend=own), expected)
    with use_backend(own):
        torch.testing.assert_close(sparse_conv2d(*arguments), expected)
        pointwise_conv(torch.randn(3, 4), torch.randn(5, 4), None)
        dense_conv2d(torch.randn(1, 4, 6, 6), torch.randn(5, 4, 3, 3), None)
        assert resolve_backend("auto", "cpu") is own
        assert backend_for(torch.zeros(1)) is own
    sparse_conv2d(*arguments)
    assert own.calls == {"sparse_conv2d": 2, "pointwise_conv": 1, "dense_conv2d": 1}


@pytest.mark.parametrize("fused", [False, True])
def test_a_detector_runs_on_it_from_end_to_end(fused: bool) -> None:
    own, images = Counting(), torch.rand(1, 3, 64, 96)
    model = build_detector("nano", 3, ["pruner=early"], pretrained=False).eval()
    model = model.fuse() if fused else model
    with torch.no_grad():
        model.backend = "reference"
        expected = model(images, execution="sparse", keep_ratio=0.5)
        model.backend = own
        out = model(images, execution="sparse", keep_ratio=0.5)
    assert out.backend == "counting"
    assert own.calls["sparse_conv2d"] > 5
    assert own.calls["sample"] == 3
    assert bool(own.calls["dense_conv2d"]) == fused
    torch.testing.assert_close(out.pred_logits, expected.pred_logits)
    torch.testing.assert_close(out.pred_boxes, expected.pred_boxes)


def test_what_a_backend_does_not_serve_is_refused() -> None:
    class OnlyHalf(Backend):
        name = "half"
        served = "float16"

        def serves(self, device, dtype):
            return dtype == torch.float16

    with pytest.raises(ValueError, match="'half' computes float16, not torch.float32 on cpu"):
        sparse_conv2d(*_convolution(), backend=OnlyHalf())


def test_one_that_cannot_run_here_says_why() -> None:
    class Missing(Backend):
        name = "missing"

        def problem(self):
            return "buy the card first"

    for use in (
        lambda b: sparse_conv2d(*_convolution(), backend=b),
        lambda b: use_backend(b).__enter__(),
    ):
        with pytest.raises(ImportError, match="'missing' cannot run here: buy the card first"):
            use(Missing())


def test_auto_takes_the_kernels_where_they_serve() -> None:
    fastest = REFERENCE if CPU.problem() else CPU
    assert resolve_backend("auto", "cpu") is fastest
    assert resolve_backend("auto", "cpu", torch.float64) is REFERENCE
    assert resolve_backend("auto", "meta") is REFERENCE
    assert backend_for(torch.zeros(1)) is fastest
    assert backend_for(torch.zeros(1, device="meta")) is REFERENCE
