"""The comparisons of convolutions compute the same in every arm."""

from __future__ import annotations

import pytest
import torch

from sparse_dset import native
from sparse_dset.benchmark import kernels
from sparse_dset.benchmark.comparison import compare

pytestmark = pytest.mark.skipif(
    bool(native.unavailable_reason()), reason=native.unavailable_reason()
)


def test_ops(monkeypatch):
    monkeypatch.setattr(kernels, "SHAPES", ((32, 8),))
    with torch.no_grad():
        for case in kernels.ops_cases((0.5, 1.0)):
            rows = compare(case, warmup=1, repeats=1)
            assert len(rows) >= 2
