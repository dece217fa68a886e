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


def test_wrong_index_is_named() -> None:
    with pytest.raises(ValueError, match=r"index must be int64 \(4,\)"):
        segment_sum(torch.zeros(4, 2), torch.zeros(4, dtype=torch.int32), 2)
    with pytest.raises(ValueError, match=r"index must be int64 \(4,\)"):
        segment_mean(torch.zeros(4, 2), torch.zeros(3, dtype=torch.int64), 2)


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
