"""Checks the C++ operators against the reference operators."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_dset import native
from sparse_dset.ops import (
    dense_conv2d,
    depthwise_conv2d,
    pointwise_conv,
    project_and_sample,
    sparse_conv2d,
    sparse_deform_attn,
)
from sparse_dset.ops.activations import ACTIVATIONS, activate
from sparse_dset.ops.backends import CPU
from sparse_dset.structures import Support

ALGORITHMS = CPU.algorithms

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


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_fused_activation(algorithm, activation):
    support = Support.from_mask(torch.rand(2, 9, 14) < 0.4)
    features, weight = 3 * torch.randn(support.num_sites, 16), torch.randn(24, 16, 3, 3)
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
    weight.data[::2] = 0
    check()
    weight = torch.randn(128, 16, 3, 3)[::8].to(memory_format=torch.channels_last)
    check()
    weight.data.mul_(2)
    check()


def test_weights_that_are_trained_are_watched_whole():
    support = Support.from_mask(torch.rand(1, 8, 8) < 0.5)
    features = torch.randn(support.num_sites, 128)
    weight = torch.nn.Parameter(torch.randn(128, 128, 3, 3))
    optimizer = torch.optim.SGD([weight], lr=1.0, fused=True)  # moves no version counter

    def check():
        ours, theirs = (
            sparse_conv2d(features, weight, None, support, backend=backend)
            for backend in ("cpu", "reference")
        )
        torch.testing.assert_close(ours, theirs, atol=1e-2, rtol=1e-3)
        return ours

    check().sum().backward()
    optimizer.step()
    check()
    weight.data[77, 3, 1, 2] = 1000.0
    check()
    weight.data = weight.data.to(memory_format=torch.channels_last)
    check()
    weight.data[5, 77, 0, 0] = -1000.0
    check()


@pytest.mark.parametrize("stride", [1, 2])
def test_long_sums_are_exact(stride):
    """Sums of 1152 products of standard normal numbers, over random sites and over blocks."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(6400, generator=generator)[:1728]
    mask = torch.zeros(1, 80, 80, dtype=torch.bool)
    mask.view(-1)[order] = True
    support = Support.from_mask(mask)
    target = support if stride == 1 else Support.full(1, 40, 40)
    features = torch.randn(1728, 128, generator=generator)
    weight = torch.randn(128, 128, 3, 3, generator=generator)
    ours = sparse_conv2d(
        features, weight, None, support, stride, target, algorithm="indirect", backend="cpu"
    )
    theirs = sparse_conv2d(
        features.double(), weight.double(), None, support, stride, target, backend="reference"
    )
    assert (ours - theirs).abs().max() < 1e-4


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


@st.composite
def _masks(draw):
    """Masks of odd sizes, some of them blocks, some nearly or wholly empty."""
    shape = [draw(st.integers(1, 3)), draw(st.integers(1, 13)), draw(st.integers(1, 13))]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    cells = torch.rand(shape, generator=generator) < draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    block = draw(st.sampled_from([1, 2, 4]))
    return cells.repeat_interleave(block, 1).repeat_interleave(block, 2)


@settings(deadline=None, max_examples=60)
@given(
    mask=_masks(),
    channels=st.tuples(st.integers(1, 40), st.integers(1, 70)),
    algorithm=st.sampled_from(ALGORITHMS),
    scale=st.sampled_from([1e-20, 1.0, 1e15]),
    threads=st.integers(1, 4),
)
def test_any_mask(mask, channels, algorithm, scale, threads):
    support = Support.from_mask(mask)
    wide = torch.randn(support.num_sites, channels[0] + 3) * scale
    features = wide[:, 2:-1]  # rows farther apart than they are long
    weight = torch.randn(3, 3, *channels).permute(3, 2, 0, 1)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        ours = sparse_conv2d(
            features, weight, None, support, algorithm=algorithm, backend="cpu"
        ).double()
    finally:
        torch.set_num_threads(before)
    theirs = sparse_conv2d(features.double(), weight.double(), None, support, backend="reference")
    assert ours.shape == theirs.shape
    if theirs.numel():
        assert (ours - theirs).abs().max() <= 5e-5 * theirs.abs().max()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(2, 40, 13, 9), (1, 64, 1, 1), (3, 33, 4, 8)])
@pytest.mark.parametrize("size", [1, 3])
def test_dense_convolution(size, shape, activation):
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(48, shape[1], size, size), torch.randn(48)
    expected = torch.nn.functional.conv2d(x.double(), weight.double(), bias.double(), 1, size // 2)
    expected = activate(expected, activation)
    ours = dense_conv2d(x, weight, bias, activation=activation)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    assert (ours - expected).abs().max() <= 5e-5 * expected.abs().max()


def test_pointwise_convolution_of_no_rows():
    assert pointwise_conv(torch.zeros(0, 5), torch.randn(7, 5), None).shape == (0, 7)


def _operator_calls():
    support = Support.from_mask(torch.rand(2, 7, 9) < 0.5)
    features = torch.randn(support.num_sites, 6, requires_grad=True)
    weight = torch.randn(5, 6, 3, 3, requires_grad=True)
    bias = torch.randn(5, requires_grad=True)
    tables = support.neighbors(), support.row_map()
    locations = torch.rand(2, 3, 2, 1, 4, 2, requires_grad=True)
    weights = torch.rand(2, 3, 2, 1, 4, requires_grad=True)
    extents = torch.tensor([[[7.0, 9.0]]]).expand(2, 1, 2)
    background = torch.zeros(1, 6, requires_grad=True)
    sampling = [support.row_map()], [support.num_sites], locations, weights, extents, background
    for algorithm in ALGORITHMS:
        yield "sparse_conv2d_cpu", (features, weight, bias, *tables, algorithm, "none")
        rows = features.detach()
        yield "sparse_conv2d_cpu_weight_gradient", (rows, rows, *tables, algorithm)
    yield "dense_conv2d_cpu", (torch.randn(2, 6, 8, 9), weight.detach(), None, "auto", "relu")
    yield "pointwise_conv_cpu", (features.detach(), torch.randn(4, 6), None, None, None, "silu")
    kernels = torch.randn(6, 1, 3, 3, requires_grad=True)
    channel_bias = torch.randn(6, requires_grad=True)
    yield "depthwise_conv2d_cpu", (features, kernels, channel_bias, tables[0], "none")
    yield "depthwise_conv2d_cpu_weight_gradient", (rows, rows, tables[0])
    yield "sites_of_mask", (support.mask(),)
    yield "parent_rows", (support.indices, Support.full(2, 4, 5).row_map())
    yield "window_table", (support.row_map(), support.indices, 5, 1)
    yield "inverse_table", (tables[0], support.num_sites)
    yield "deform_attn_cpu", (features, *sampling, False)


@pytest.mark.slow
def test_opcheck():
    for name, arguments in _operator_calls():
        torch.library.opcheck(getattr(torch.ops.sparse_dset, name).default, arguments)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_compiles_in_one_graph(algorithm):
    support = Support.from_mask(torch.rand(2, 7, 9) < 0.5)
    features, weight = torch.randn(support.num_sites, 6), torch.randn(5, 6, 3, 3)

    def convolve(features, weight):
        return sparse_conv2d(features, weight, None, support, algorithm=algorithm, backend="cpu")

    compiled = torch.compile(convolve, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(features, weight), convolve(features, weight))


@pytest.mark.parametrize("stride", [3, 4])
@torch.no_grad()
def test_depthwise_convolution_of_other_strides(stride):
    x, weight = torch.rand(1, 8, 9, 9), torch.rand(8, 1, 3, 3)
    expected = F.conv2d(x, weight, None, stride, 1, groups=8)
    torch.testing.assert_close(dense_conv2d(x, weight, None, stride), expected)


@pytest.mark.parametrize("channels", [1, 5, 40, 70, 144])
@pytest.mark.parametrize("keep", [0.0, 0.02, 0.4, 1.0])
@pytest.mark.parametrize("size", [1, 3, 5, 7])
def test_depthwise_convolution(size, keep, channels):
    support = Support.from_mask(torch.rand(2, 9, 14) < keep)
    target = Support.from_mask(torch.rand(2, 5, 7) < 0.6)
    inputs = [
        torch.randn(support.num_sites, channels),
        torch.randn(channels, 1, size, size),
        torch.randn(channels),
    ]
    for strided in ((1, None), (2, target)):
        _compare(
            lambda f, w, b, backend, strided=strided: depthwise_conv2d(
                f, w, b, support, *strided, backend=backend
            ),
            inputs,
        )


def test_depthwise_convolution_of_columns_and_stale_weights():
    support = Support.from_mask(torch.rand(2, 9, 14) < 0.5)
    features, weight = torch.randn(support.num_sites, 48)[:, 8:40], torch.randn(32, 1, 3, 3)
    for _ in range(2):
        options = {"activation": "relu6"}
        ours = depthwise_conv2d(features, weight, None, support, backend="cpu", **options)
        theirs = depthwise_conv2d(features, weight, None, support, backend="reference", **options)
        torch.testing.assert_close(ours, theirs)
        weight.mul_(2)


@pytest.mark.parametrize("kernel", [(24, 32, 1), (40, 48, 3), (3, 16, 3), (32, 1, 3), (32, 1, 5)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_dense_convolution_with_addend(layout, stride, kernel):
    out_channels, in_channels, size = kernel
    groups = out_channels if in_channels == 1 else 1
    x = torch.randn(2, in_channels * groups, 9, 12).contiguous(memory_format=layout)
    weight, bias = torch.randn(*kernel, size), torch.randn(out_channels)
    expected = F.conv2d(x, weight, bias, stride, size // 2, groups=groups)
    addend = torch.randn_like(expected)
    for more in (None, addend):
        ours = dense_conv2d(x, weight, bias, stride, "relu", more)
        theirs = (expected if more is None else expected + more).relu()
        torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize("algorithm", ["indirect", "winograd2", "winograd4"])
def test_addend_of_rows(algorithm):
    support = Support.from_mask(torch.rand(2, 9, 14) < 0.4)
    features, weight = torch.randn(support.num_sites, 16), torch.randn(70, 16, 3, 3)
    addend = torch.randn(support.num_sites, 70)
    tables = support.neighbors(), support.row_map()
    ours = torch.ops.sparse_dset.sparse_conv2d_cpu(
        features, weight, None, *tables, algorithm, "relu", False, addend
    )
    theirs = sparse_conv2d(features, weight, None, support, backend="reference") + addend
    torch.testing.assert_close(ours, theirs.relu(), atol=1e-3, rtol=1e-4)


def test_results_outlive_what_their_memory_is_given_to_next():
    x, weight = torch.randn(4096, 64), torch.randn(128, 64)
    kept = [pointwise_conv(x, weight * i, None) for i in range(6)]
    for i, result in enumerate(kept):
        torch.testing.assert_close(result, kept[1] * i, atol=1e-3, rtol=1e-4)
    assert len({result.data_ptr() for result in kept}) == 6
    del result
    address = kept.pop().data_ptr()
    again = pointwise_conv(x, weight, None)
    assert again.data_ptr() == address
    kept += [again, pointwise_conv(x, -weight, None)]
    assert len({result.data_ptr() for result in kept}) == 7
    torch.testing.assert_close(kept[-1], -again)
