"""Checks the segment reductions against loops, with and without torch_scatter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sparse_dset.ops import segment, segment_mean, segment_sum
from sparse_dset.ops.segment import take


@pytest.fixture(params=["torch_scatter", "torch"], autouse=True)
def _library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch":
        monkeypatch.setattr(segment, "torch_scatter", None)
    elif segment.torch_scatter is None:
        pytest.skip("torch_scatter is not installed")


def _segments(values: Tensor, index: Tensor, size: int) -> list[Tensor]:
    return [values[index == i] for i in range(size)]


@pytest.mark.parametrize("shape", [(), (3,), (3, 2)])
def test_equals_loops(shape: tuple[int, ...]) -> None:
    values, index = torch.randn(40, *shape), torch.randint(0, 5, (40,)) + 1
    segments = _segments(values, index, 8)  # segments 0, 6 and 7 have no rows
    sums = torch.stack([rows.sum(0) for rows in segments])
    means = torch.stack([rows.sum(0) / max(len(rows), 1) for rows in segments])
    torch.testing.assert_close(segment_sum(values, index, 8), sums)
    torch.testing.assert_close(segment_mean(values, index, 8), means)
    assert not segment_sum(values, index, 8)[[0, 6, 7]].any()


def test_gradients() -> None:
    values = torch.randn(10, 2, dtype=torch.float64, requires_grad=True)
    index = torch.randint(0, 4, (10,))
    assert torch.autograd.gradcheck(lambda v: segment_sum(v, index, 5), values)
    assert torch.autograd.gradcheck(lambda v: segment_mean(v, index, 5), values)


@pytest.mark.parametrize("reduce", [segment_sum, segment_mean])
def test_no_rows(reduce) -> None:
    out = reduce(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 3)
    assert out.shape == (3, 4)
    assert not out.any()


HALVES = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(("count", "value"), [(70_000, 1.0), (60_000, 0.1), (9_000, -7.0)])
def test_half_rows_are_summed_in_float32(dtype: torch.dtype, count: int, value: float) -> None:
    values = torch.full((count, 3), value, dtype=dtype, requires_grad=True)
    index = torch.arange(count) % 2
    for reduce in (segment_sum, segment_mean):
        out = reduce(values, index, 3)
        exact = reduce(values.detach().double(), index, 3)
        assert out.dtype == dtype
        # No more than the last rounding is lost.
        torch.testing.assert_close(out.double(), exact, rtol=torch.finfo(dtype).eps, atol=0)
    mean = segment_mean(values, torch.zeros_like(index), 1)  # the sum may be above the type's range
    torch.testing.assert_close(mean.double(), values[:1].double(), rtol=1e-2, atol=0)
    out.sum().backward()
    assert values.grad is not None
    assert values.grad.dtype == dtype


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_gradients_of_a_row_that_is_taken_often_add_up_in_float32(dtype: torch.dtype) -> None:
    rows = torch.randn(3, 2).to(dtype).requires_grad_()
    index = torch.arange(60_000) % 2
    taken = take(rows, index)
    assert taken.dtype == dtype
    assert torch.equal(taken, rows[index])
    grad = torch.full(taken.shape, 0.1, dtype=dtype)
    taken.backward(grad)
    expected = torch.stack([grad[index == i].double().sum(0) for i in range(3)])
    assert torch.equal(rows.grad, expected.float().to(dtype))


def test_whole_numbers_stay_whole_numbers() -> None:
    values, index = torch.tensor([2**40, 1, 3]), torch.tensor([0, 0, 1])
    assert segment_sum(values, index, 2).tolist() == [2**40 + 1, 3]
    assert segment_mean(torch.tensor([1, 2, 3]), index, 2).tolist() == [1.5, 3.0]


def test_wrong_index_is_named() -> None:
    with pytest.raises(ValueError, match=r"index must be int64 \[4\]"):
        segment_sum(torch.zeros(4, 2), torch.zeros(4, dtype=torch.int32), 2)
    with pytest.raises(ValueError, match=r"index must be int64 \[4\]"):
        segment_mean(torch.zeros(4, 2), torch.zeros(3, dtype=torch.int64), 2)


def test_an_index_made_under_inference_mode_has_no_part_in_gradients() -> None:
    with torch.inference_mode():
        index = torch.tensor([0, 0, 1])
    assert segment_sum(torch.ones(3), index, 2).tolist() == [2, 1]
    with pytest.raises(ValueError, match=r"inference_mode\(\) has no part in gradients"):
        segment_sum(torch.ones(3, requires_grad=True), index, 2)


def test_shapes_alone_give_shapes() -> None:
    values, index = (
        torch.empty(4, 2, device="meta"),
        torch.empty(4, dtype=torch.int64, device="meta"),
    )
    assert segment_sum(values, index, 3).shape == (3, 2)
    assert segment_mean(values, index, 3).shape == (3, 2)


def test_a_library_that_does_not_load_is_told_and_replaced(tmp_path: Path) -> None:
    (tmp_path / "torch_scatter.py").write_text("raise OSError('undefined symbol: _ZN3c10')")
    code = (
        "import torch; from sparse_dset.ops import segment_sum;"
        "print(segment_sum(torch.ones(3), torch.tensor([0, 0, 1]), 2).tolist())"
    )
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "[2.0, 1.0]\n", done.stderr
    assert "torch_scatter is here but does not load" in done.stderr
    assert "undefined symbol" in done.stderr
