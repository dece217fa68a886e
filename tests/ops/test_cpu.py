"""Checks the C++ operators against the reference operators."""

from __future__ import annotations

import pytest
import torch

from sparse_dset import native
from sparse_dset.ops import project_and_sample, sparse_conv2d, sparse_deform_attn
from sparse_dset.ops.cpu import ALGORITHMS
from sparse_dset.structures import Support

pytestmark = pytest.mark.skipif(
    bool(native.unavailable_reason()), reason=native.unavailable_reason()
)


def _compare(function, inputs):
    """Compares outputs and gradients of backend "cpu" with the reference in float64."""
    results = []
    for backend, dtype in (("cpu", torch.float32), ("reference", torch.float64)):
        arguments = [x.detach().to(dtype).requires_grad_() for x in inputs]
        out = function(*arguments, backend=backend)
        torch.manual_seed(3)
        grad = torch.randn(out.shape, dtype=torch.float64).to(dtype)
        grads = torch.autograd.grad(out, arguments, grad)
        results.append([x.double() for x in (out, *grads)])
    for ours, theirs in zip(*results, strict=True):
        scale = theirs.abs().max().clamp(min=1.0) if theirs.numel() else 1.0
        torch.testing.assert_close(ours / scale, theirs / scale, rtol=0, atol=5e-5)


@pytest.mark.parametrize("channels", [(5, 7), (33, 70), (128, 64)])
@pytest.mark.parametrize("keep", [0.0, 0.02, 0.3, 1.0])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_submanifold_convolution(algorithm, keep, channels):
    support = Support.from_mask(torch.rand(3, 9, 14) < keep)
    inputs = [
        torch.randn(support.num_sites, channels[0]),
        torch.randn(channels[1], channels[0], 3, 3) / channels[0] ** 0.5,
        torch.randn(channels[1]),
    ]

    def convolve(features, weight, bias, backend):
        options = {"algorithm": algorithm} if backend == "cpu" else {}
        return sparse_conv2d(features, weight, bias, support, backend=backend, **options)

    _compare(convolve, inputs)


@pytest.mark.parametrize("keep", [0.0, 0.3, 1.0])
def test_strided_convolution(keep):
    support = Support.from_mask(torch.rand(2, 9, 14) < keep)
    target = Support.from_mask(torch.rand(2, 5, 7) < 0.6)
    inputs = [torch.randn(support.num_sites, 12), torch.randn(20, 12, 3, 3), torch.randn(20)]
    _compare(
        lambda f, w, b, backend: sparse_conv2d(f, w, b, support, 2, target, backend=backend), inputs
    )


@pytest.mark.parametrize("activation", ["none", "relu", "silu"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_fused_activation(algorithm, activation):
    support = Support.from_mask(torch.rand(2, 9, 14) < 0.4)
    features, weight = torch.randn(support.num_sites, 16), torch.randn(24, 16, 3, 3)
    options = {"backend": "cpu", "activation": activation}
    ours = sparse_conv2d(features, weight, None, support, algorithm=algorithm, **options)
    options["backend"] = "reference"
    theirs = sparse_conv2d(features.double(), weight.double(), None, support, **options)
    torch.testing.assert_close(ours.double(), theirs, atol=5e-5 * theirs.abs().max().item(), rtol=0)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_packed_weights_are_never_stale(algorithm):
    support = Support.from_mask(torch.rand(1, 8, 8) < 0.5)
    features, weight = torch.randn(support.num_sites, 16), torch.randn(16, 16, 3, 3)

    def check():
        ours = sparse_conv2d(features, weight, None, support, algorithm=algorithm, backend="cpu")
        theirs = sparse_conv2d(features, weight, None, support, backend="reference")
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)

    check()
    weight.mul_(2)
    check()
    weight.data.add_(1)
    check()
    weight.data = torch.randn_like(weight)
    check()


def _samples(keep):
    supports = [Support.from_mask(torch.rand(2, 2 * f, 3 * f) < keep) for f in (4, 2, 1)]
    shape = (2, 7, 4, 3, 2)
    extents = torch.tensor([[[8.0, 12], [4, 6], [2, 3]], [[5.5, 7], [2.75, 3.5], [1.375, 1.75]]])
    rows = torch.randn(sum(s.num_sites for s in supports), 24)
    locations = torch.rand(*shape, 2) * 1.4 - 0.2
    return supports, extents, rows, torch.rand(shape), locations, torch.randn(3, 24)


@pytest.mark.parametrize("keep", [0.0, 0.4, 1.0])
def test_deformable_attention(keep):
    supports, extents, rows, weights, locations, background = _samples(keep)

    def sample(rows, locations, weights, background, backend):
        return sparse_deform_attn(
            rows, supports, locations, weights, extents, background, backend=backend
        )

    _compare(sample, [rows, locations, weights, background])


@pytest.mark.parametrize("keep", [0.0, 0.4, 1.0])
def test_both_orders_of_projection_and_sampling(keep):
    supports, extents, rows, weights, locations, background = _samples(keep)
    arguments = rows, torch.randn(16, 24), torch.randn(16), supports, locations, weights, extents
    for empty in (None, background):
        torch.testing.assert_close(
            project_and_sample(*arguments, empty, order="project_first"),
            project_and_sample(*arguments, empty, order="sample_first"),
            atol=1e-4,
            rtol=1e-4,
        )
