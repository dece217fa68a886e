"""Convolutions for inference: equal to PyTorch's, and arguments that do not fit are named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from sparse_dset.ops import (
    dense_conv2d,
    pointwise_conv,
    project_and_sample,
    rows_conv2d,
    use_backend,
)
from sparse_dset.structures import Support

BACKENDS = ("auto", "reference")
OURS = (ValueError, RuntimeError)  # the kernels' checks are RuntimeErrors


def _described(change: object) -> str:
    """A short name for a test."""
    if isinstance(change, dict):
        ((name, value),) = change.items()
        if isinstance(value, torch.Tensor):
            return (
                f"{name} {str(value.dtype)[6:]} {list(value.shape)} {value.device} {value.layout}"
            )
        return f"{name} {value}"
    return str(change)


def _dense_arguments(size: int = 3, channels: int = 32) -> dict[str, Any]:
    return {
        "x": torch.randn(2, channels, 5, 7),
        "weight": torch.randn(channels, channels, size, size),
        "bias": torch.randn(channels),
    }


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("groups", [1, 4, 32])
def test_a_dense_convolution_equals_pytorch(
    backend: str, stride: int, size: int, groups: int
) -> None:
    x, weight = torch.randn(2, 32, 5, 7), torch.randn(32, 32 // groups, size, size)
    bias = torch.randn(32)
    wanted = F.conv2d(x.double(), weight.double(), bias.double(), stride, size // 2, 1, groups)
    addend = torch.randn(wanted.shape)
    with use_backend(backend):
        out = dense_conv2d(x, weight, bias, stride, "relu", addend)
    torch.testing.assert_close(out, (wanted + addend).relu().float(), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize(
    "change",
    [
        {"x": torch.randn(32, 5, 7)},
        {"x": torch.randn(2, 31, 5, 7)},
        {"x": torch.randn(2, 32, 0, 7)},
        {"x": torch.randn(2, 32, 5, 7).to_sparse()},
        {"x": torch.ones(2, 32, 5, 7, dtype=torch.int32)},
        {"x": torch.ones(2, 32, 5, 7, dtype=torch.complex64)},
        {"x": torch.empty(2, 32, 5, 7, device="meta")},
        {"weight": torch.randn(32, 32)},
        {"weight": torch.randn(32, 0, 3, 3)},
        {"weight": torch.randn(32, 32, 2, 2)},
        {"weight": torch.randn(32, 32, 3, 1)},
        {"weight": torch.randn(32, 32, 0, 0)},
        {"weight": torch.randn(30, 8, 3, 3)},
        {"weight": torch.randn(32, 32, 3, 3).double()},
        {"weight": torch.empty(32, 32, 3, 3, device="meta")},
        {"weight": torch.randn(32, 32, 1, 1).to_sparse()},
        {"bias": torch.randn(31)},
        {"bias": torch.randn(32, 1)},
        {"bias": torch.randn(32).double()},
        {"stride": 0},
        {"stride": -2},
        {"activation": "softmax"},
        {"addend": torch.randn(2, 32, 7, 5)},
        {"addend": torch.randn(2, 1, 5, 7)},
        {"addend": torch.randn(2, 32, 5, 7).to_sparse()},
        {"addend": torch.randn(70, 32)},
        {"addend": torch.empty(2, 32, 5, 7, device="meta")},
        {"addend": torch.ones(2, 32, 5, 7, dtype=torch.complex64)},
    ],
    ids=_described,
)
def test_a_dense_convolution_names_what_does_not_fit(
    backend: str, size: int, change: dict[str, Any]
) -> None:
    with use_backend(backend), pytest.raises(OURS) as error:
        dense_conv2d(**{**_dense_arguments(size), **change})
    _is_of_ours(error.value, next(iter(change)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "change",
    [
        {"rows": torch.randn(6, 3, 1)},
        {"rows": torch.randn(6, 4)},
        {"rows": torch.ones(6, 3, dtype=torch.int64)},
        {"weight": torch.randn(5, 3, 2)},
        {"weight": torch.randn(5, 4)},
        {"weight": torch.randn(5, 3).half()},
        {"bias": torch.randn(3)},
        {"addend": torch.randn(4, 6)},
        {"addend": torch.empty(4, 5, device="meta")},
        {"addend_rows": torch.tensor([0, 1, 2, 3, 4, 0])},
        {"addend_rows": torch.tensor([0, 1, 2, 3, -1, 0])},
        {"addend_rows": torch.tensor([0, 1])},
        {"addend_rows": torch.zeros(6, dtype=torch.int32)},
        {"activation": "gelu"},
    ],
    ids=_described,
)
def test_a_linear_layer_names_what_does_not_fit(backend: str, change: dict[str, Any]) -> None:
    given = {
        "rows": torch.randn(6, 3),
        "weight": torch.randn(5, 3),
        "bias": torch.randn(5),
        "addend": torch.randn(4, 5),
        "addend_rows": torch.tensor([0, 1, 2, 3, 0, 1]),
    }
    with use_backend(backend), pytest.raises(OURS) as error:
        pointwise_conv(**{**given, **change})
    _is_of_ours(error.value, next(iter(change)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "change",
    [
        {"rows": torch.randn(3, 2)},
        {"rows": torch.randn(4, 3)},
        {"weight": torch.randn(5, 2)},
        {"stride": 3},
        {"stride": 2},
        {"target": Support.full(1, 3, 3)},
        {"activation": "gelu"},
        {"addend": torch.randn(5, 5)},
        {"addend": torch.randn(1, 5)},
    ],
    ids=_described,
)
def test_a_sparse_convolution_names_what_does_not_fit(backend: str, change: dict[str, Any]) -> None:
    support = Support.full(1, 2, 2)
    given = {
        "rows": torch.randn(4, 2),
        "weight": torch.randn(5, 2, 3, 3),
        "bias": torch.randn(5),
        "support": support,
        "stride": 1,
        "target": support,
        "activation": "relu",
        "addend": torch.randn(4, 5),
    }
    with use_backend(backend), pytest.raises(OURS) as error:
        rows_conv2d(**{**given, **change})
    _is_of_ours(error.value, "")


@pytest.mark.parametrize(
    "change",
    [
        {"weight": torch.randn(6, 3)},
        {"weight": torch.randn(5, 4)},
        {"weight": torch.randn(6)},
        {"bias": torch.randn(4)},
        {"order": "whichever"},
    ],
    ids=_described,
)
def test_projecting_and_sampling_names_what_does_not_fit(change: dict[str, Any]) -> None:
    given = {
        "rows": torch.randn(4, 4),
        "weight": torch.randn(6, 4),
        "bias": torch.randn(6),
        "supports": [Support.full(1, 2, 2)],
        "locations": torch.rand(1, 3, 2, 1, 1, 2),
        "weights": torch.rand(1, 3, 2, 1, 1),
        "extents": torch.tensor([[[2.0, 2.0]]]),
    }
    assert project_and_sample(**given).shape == (1, 3, 6)
    with pytest.raises(ValueError) as error:
        project_and_sample(**{**given, **change})
    _is_of_ours(error.value, next(iter(change)))


def test_no_pixels_of_no_image_are_convolved() -> None:
    for backend in BACKENDS:
        with use_backend(backend):
            out = dense_conv2d(torch.randn(0, 32, 5, 7), torch.randn(32, 32, 3, 3), None)
        assert out.shape == (0, 32, 5, 7)


def _is_of_ours(error: BaseException, name: str) -> None:
    message = str(error)
    assert message.startswith("sparse_dset: ") or isinstance(error, ValueError), message
    words = {"x": ("x ", "weight", "features"), "rows": ("rows", "features", "weight")}
    assert any(word in message for word in words.get(name, (name, "one device"))), message
