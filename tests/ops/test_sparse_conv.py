"""Checks the sparse convolution against dense ones, and its argument checks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_dset.ops import backend_problems, resolve_backend, sparse_conv2d
from sparse_dset.ops.backends.reference_conv import sparse_conv2d_reference
from sparse_dset.structures import SparseMap, Support

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    ),
]


def _supports(stride: int, device: str = "cpu") -> tuple[Support, Support]:
    support = Support.from_mask(torch.rand(3, 9, 12, device=device) < 0.4)
    if stride == 1:
        return support, support
    return support, Support.from_mask(torch.rand(3, 5, 6, device=device) < 0.6)


def _inputs(support: Support, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    options = {"dtype": dtype, "device": support.device, "requires_grad": True}
    features = torch.randn(support.num_sites, 5, **options)
    return features, torch.randn(7, 5, 3, 3, **options), torch.randn(7, **options)


def _dense(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    support: Support,
    stride: int,
    out: Support,
) -> Tensor:
    dense = SparseMap(features, support).to_dense()
    return SparseMap.from_dense(F.conv2d(dense, weight, bias, stride, 1), out).features


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
def test_equals_the_dense_convolution(stride: int, with_bias: bool, device: str) -> None:
    support, out_support = _supports(stride, device)
    features, weight, bias = _inputs(support)
    inputs = [features, weight, bias] if with_bias else [features, weight]
    bias = bias if with_bias else None

    actual = sparse_conv2d(features, weight, bias, support, stride, out_support)
    expected = _dense(features, weight, bias, support, stride, out_support)

    torch.testing.assert_close(actual, expected)
    grad = torch.randn_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual, inputs, grad), torch.autograd.grad(expected, inputs, grad)
    )


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients(stride: int) -> None:
    support = Support.from_mask(torch.rand(2, 4, 5) < 0.5)
    out_support = support if stride == 1 else Support.from_mask(torch.rand(2, 2, 3) < 0.7)
    features = torch.randn(support.num_sites, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda f, w: sparse_conv2d(f, w, None, support, stride, out_support), (features, weight)
    )


def test_only_one_gradient_is_wanted() -> None:
    support, _ = _supports(1)
    features, weight, _ = _inputs(support)
    sparse_conv2d(features.detach(), weight, None, support).sum().backward()
    assert features.grad is None
    assert weight.grad is not None


@pytest.mark.parametrize("backend", ["reference", "spconv"])
def test_token_keeps_its_place_on_an_oblong_map(backend: str) -> None:
    _skip_unless_usable(backend)
    mask = torch.zeros(1, 20, 40, dtype=torch.bool)
    mask[0, 5, 35] = mask[0, 6, 35] = mask[0, 5, 36] = True
    support = Support.from_mask(mask)
    features, weight, bias = _inputs(support)
    torch.testing.assert_close(
        sparse_conv2d(features, weight, bias, support, backend=backend),
        _dense(features, weight, bias, support, 1, support),
    )


@pytest.mark.parametrize("backend", ["reference", "spconv"])
def test_identity_kernel(backend: str) -> None:
    _skip_unless_usable(backend)
    support, _ = _supports(1)
    features = torch.randn(support.num_sites, 6)
    weight = torch.zeros(6, 6, 3, 3)
    weight[torch.arange(6), torch.arange(6), 1, 1] = 1.0
    torch.testing.assert_close(
        sparse_conv2d(features, weight, None, support, backend=backend), features
    )


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("empty", ["in", "out", "batch"])
def test_no_sites(empty: str, stride: int) -> None:
    batch = 0 if empty == "batch" else 2
    support = Support.from_mask(torch.full((batch, 4, 6), empty != "in"))
    out_support = support
    if stride == 2:
        out_support = Support.from_mask(torch.full((batch, 2, 3), empty != "out"))
    features, weight, bias = _inputs(support)

    out = sparse_conv2d(features, weight, bias, support, stride, out_support)
    out.sum().backward()

    assert out.shape == (out_support.num_sites, 7)
    assert features.grad.shape == features.shape
    assert weight.grad.shape == weight.shape
    if empty == "in":
        torch.testing.assert_close(out, bias.expand_as(out))
        assert not weight.grad.any()


def test_non_contiguous_inputs() -> None:
    support, _ = _supports(1)
    features, weight, bias = (x.detach() for x in _inputs(support))
    expected = sparse_conv2d(features, weight, bias, support)
    scattered = features.repeat_interleave(2, 1)[:, ::2]
    turned = weight.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    assert not scattered.is_contiguous()
    assert not turned.is_contiguous()
    torch.testing.assert_close(sparse_conv2d(scattered, turned, bias, support), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stride", [1, 2])
def test_half_precision(stride: int, dtype: torch.dtype) -> None:
    support, out_support = _supports(stride)
    features, weight, bias = _inputs(support, torch.float32)
    weight = weight / 45**0.5
    arguments = bias, support, stride, out_support
    expected = sparse_conv2d(features, weight, *arguments)
    half = features.to(dtype)

    promoted = sparse_conv2d(half, weight, *arguments)
    assert promoted.dtype == torch.float32
    torch.testing.assert_close(promoted, expected, atol=2e-2, rtol=2e-2)

    with torch.autocast("cpu", dtype=dtype):
        mixed = sparse_conv2d(half, weight, *arguments)
        assert sparse_conv2d(features.double(), weight, *arguments).dtype == torch.float64
    assert mixed.dtype == dtype
    torch.testing.assert_close(mixed.float(), expected, atol=2e-2, rtol=2e-2)
    mixed.float().sum().backward()
    assert features.grad.dtype == torch.float32


def test_backward_within_autocast() -> None:
    support, _ = _supports(1)
    features, weight, _ = _inputs(support, torch.float32)
    out = sparse_conv2d(features, weight, None, support)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out.sum().backward()
    assert features.grad.dtype == weight.grad.dtype == torch.float32


def test_opcheck() -> None:
    support, _ = _supports(1)
    features, weight, _ = _inputs(support)
    torch.library.opcheck(sparse_conv2d_reference, (features, weight, support.neighbors()))


def test_compiles_in_one_graph() -> None:
    support, _ = _supports(1)
    features, weight, _ = _inputs(support, torch.float32)
    table = support.neighbors()
    compiled = torch.compile(sparse_conv2d_reference, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        compiled(features, weight, table), sparse_conv2d_reference(features, weight, table)
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": torch.zeros(3, 5)}, r"features must be \[\d+, C_in\]"),
        ({"weight": torch.zeros(7, 5, 1, 1)}, r"weight must be .*linear layer"),
        ({"weight": torch.zeros(7, 4, 3, 3)}, r"weight must be \[C_out, 5, 3, 3\]"),
        ({"bias": torch.zeros(5)}, r"bias must be \[7\]"),
        ({"stride": 3}, "stride must be 1 or 2"),
        ({"stride": 2}, "out_support must name"),
        ({"stride": 2, "out_support": Support.full(3, 9, 12)}, "stride-2 convolution"),
        ({"out_support": Support.full(3, 9, 12)}, "out_support must be None or the support"),
        ({"backend": "gpu"}, "choose one of auto, reference, cpu, spconv"),
        ({"algorithm": "fft"}, "choose one of auto"),
    ],
)
def test_wrong_arguments_are_named(changes: dict[str, object], message: str) -> None:
    support, _ = _supports(1)
    features, weight, bias = _inputs(support, torch.float32)
    arguments = {"features": features, "weight": weight, "bias": bias, "support": support}
    with pytest.raises(ValueError, match=message):
        sparse_conv2d(**(arguments | changes))


def test_auto_resolves_to_a_usable_backend() -> None:
    expected = "reference" if backend_problems()["cpu"] else "cpu"
    assert resolve_backend("auto", "cpu").name == expected
    assert resolve_backend("auto", "cpu", torch.float64).name == "reference"
    assert backend_problems()["reference"] == ""


def _skip_unless_usable(backend: str) -> None:
    reason = backend_problems()[backend]
    if reason:
        pytest.skip(reason)
