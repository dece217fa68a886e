"""What the C++ operators refuse, and how they say so; and other processors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sparse_dset import native
from sparse_dset.ops import (
    dense_conv2d,
    depthwise_conv2d,
    pointwise_conv,
    sparse_conv2d,
)
from sparse_dset.structures import Support

pytestmark = pytest.mark.skipif(
    bool(native.unavailable_reason()), reason=native.unavailable_reason()
)


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def test_kernels_for_inference_refuse_gradients():
    x, rows = torch.rand(1, 32, 8, 8), torch.rand(5, 32)
    with pytest.raises(RuntimeError, match="dense_conv2d has no gradient"):
        dense_conv2d(x, torch.rand(32, 32, 3, 3, requires_grad=True), None)
    with pytest.raises(RuntimeError, match="pointwise_conv has no gradient"):
        pointwise_conv(rows.requires_grad_(), torch.rand(8, 32), None)
    with torch.no_grad():
        assert pointwise_conv(rows, torch.rand(8, 32), None).shape == (5, 8)


def test_row_maps_that_name_other_rows_are_refused():
    row_map = torch.zeros(1, 4, 4, dtype=torch.int32)
    row_map[0, 2, 2] = 200_000_000
    locations, weights = torch.rand(1, 2, 1, 1, 1, 2), torch.rand(1, 2, 1, 1, 1)
    with pytest.raises(RuntimeError, match="level 0 names row 200000000 of 16"):
        torch.ops.sparse_dset.deform_attn_cpu(
            torch.rand(16, 8),
            [row_map],
            [16],
            locations,
            weights,
            torch.tensor([[[4.0, 4.0]]]),
            torch.zeros(1, 8),
            False,
        )


def test_wrong_operands_are_named():
    with pytest.raises(RuntimeError, match="at least one channel"):
        pointwise_conv(torch.rand(5, 0), torch.rand(8, 0), None)
    support = Support.full(1, 4, 4)
    tables = support.neighbors(), support.row_map()
    convolve = torch.ops.sparse_dset.sparse_conv2d_cpu
    features, weight = torch.randn(16, 3), torch.randn(2, 3, 3, 3)
    with pytest.raises(RuntimeError, match="features must be float32"):
        convolve(features.double(), weight, None, *tables, "auto", "none")
    with pytest.raises(RuntimeError, match="table names row 15 of 15"):
        convolve(features[:15], weight, None, *tables, "indirect", "none")
    with pytest.raises(RuntimeError, match="row_map has 16 rows, features 15"):
        convolve(features[:15], weight, None, *tables, "winograd4", "none")
    with pytest.raises(ValueError, match="needs stride 1"):
        sparse_conv2d(features, weight, None, support, 2, Support.full(1, 2, 2), "winograd4", "cpu")
    with pytest.raises(ValueError, match="computes float32 and half types"):
        sparse_conv2d(features.double(), weight.double(), None, support, backend="cpu")


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["avx2", "portable"])
def test_other_processors(capability):
    """Runs the other tests of the kernels with those of older processors."""
    chosen = {"SPARSE_DSET_CPU_CAPABILITY": capability}
    command = [
        sys.executable,
        "-c",
        "from sparse_dset.doctor import kernel_status; print(kernel_status())",
    ]
    shown = subprocess.run(command, env=os.environ | chosen, capture_output=True, text=True)
    assert shown.stdout.startswith(capability), shown.stderr
    tests = [
        sys.executable,
        "-m",
        "pytest",
        *map(str, Path(__file__).parent.glob("test_cpu*.py")),
        "-q",
        "-m",
        "not slow",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(tests, env=os.environ | chosen, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize("row", [7, 2**31 - 2, 2**31 - 1])
def test_rows_that_do_not_exist_are_refused(row: int) -> None:
    features, grad = torch.rand(6, 8), torch.rand(6, 8)
    table = torch.full((6, 9), -1, dtype=torch.int32)
    table[3, 4] = row
    operators = torch.ops.sparse_dset
    with pytest.raises(RuntimeError, match="names row"):
        operators.depthwise_conv2d_cpu(features, torch.rand(8, 1, 3, 3), None, table, "none")
    with pytest.raises(RuntimeError, match="names row"):
        operators.depthwise_conv2d_cpu_weight_gradient(features, grad, table)
    with pytest.raises(RuntimeError, match="names row"):
        operators.sparse_conv2d_cpu_weight_gradient(features, grad, table, None, "indirect")


def test_shapes_alone_give_shapes_and_wrong_ones_are_named() -> None:
    operators = torch.ops.sparse_dset
    table = _meta(6, 9, dtype=torch.int32)
    given = _meta(6, 8), _meta(5, 8, 3, 3), None
    end = None, "auto", "none"
    assert operators.sparse_conv2d_cpu(*given, table, *end).shape == (6, 5)
    no_more = None, None, None, "none"
    assert operators.pointwise_conv_cpu(_meta(6, 8), _meta(5, 8), *no_more).shape == (6, 5)
    assert operators.inverse_table(table, 4).shape == (4, 9)
    with pytest.raises(ValueError, match=r"table must be \[N, taps\]"):
        operators.sparse_conv2d_cpu(*given, _meta(6, dtype=torch.int32), *end)
    with pytest.raises(ValueError, match=r"weight must be \[C_out, C_in, ...\]"):
        operators.pointwise_conv_cpu(_meta(6, 8), _meta(8), *no_more)
    with pytest.raises(ValueError, match="num_rows must be a whole number of at least 0"):
        operators.inverse_table(table, -1)
    with pytest.raises(ValueError, match="a window's size must be odd and in 1..63, got 4096"):
        operators.window_table(
            _meta(1, 2, 3, dtype=torch.int32), _meta(6, 3, dtype=torch.int32), 4096, 1
        )


def test_tensors_of_several_devices_are_refused() -> None:
    operators = torch.ops.sparse_dset
    with pytest.raises(ValueError, match="on one device, got cpu, meta"):
        operators.pointwise_conv_cpu(
            torch.rand(6, 8), torch.rand(5, 8), None, _meta(6, 5), None, "none"
        )
    with pytest.raises(ValueError, match="on one device, got cpu, meta"):
        operators.dense_conv2d_cpu(torch.rand(1, 8, 3, 3), _meta(5, 8, 3, 3), None, "auto", "none")


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_tensors_made_under_inference_mode_have_no_part_in_gradients(backend: str) -> None:
    support = Support.full(1, 3, 3)
    with torch.inference_mode():
        features = torch.rand(9, 8)
    weight = torch.rand(5, 8, 3, 3, requires_grad=True)
    with pytest.raises(ValueError, match=r"inference_mode\(\) has no part in gradients"):
        sparse_conv2d(features, weight, None, support, backend=backend)
    with pytest.raises(ValueError, match=r"inference_mode\(\) has no part in gradients"):
        depthwise_conv2d(
            features, torch.rand(8, 1, 3, 3, requires_grad=True), None, support, backend=backend
        )
    with torch.no_grad():
        assert sparse_conv2d(features, weight, None, support, backend=backend).shape == (9, 5)
