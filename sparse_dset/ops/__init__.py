"""The operators on kept sites."""

from sparse_dset.ops import flops  # noqa: F401  makes FLOP counters see them
from sparse_dset.ops.backends import (
    Backend,
    available_backends,
    backend_problems,
    resolve_backend,
    use_backend,
)
from sparse_dset.ops.deform_attn import (
    dense_deform_attn,
    project_and_sample,
    sparse_deform_attn,
)
from sparse_dset.ops.depthwise import depthwise_conv2d
from sparse_dset.ops.inference import dense_conv2d, pointwise_conv, rows_conv2d
from sparse_dset.ops.segment import segment_mean, segment_sum
from sparse_dset.ops.sparse_conv import sparse_conv2d
from sparse_dset.ops.strips import ConvWeights, inverted_residual, worth_strips

__all__ = [
    "Backend",
    "ConvWeights",
    "available_backends",
    "backend_problems",
    "dense_conv2d",
    "dense_deform_attn",
    "depthwise_conv2d",
    "inverted_residual",
    "pointwise_conv",
    "project_and_sample",
    "resolve_backend",
    "rows_conv2d",
    "segment_mean",
    "segment_sum",
    "sparse_conv2d",
    "sparse_deform_attn",
    "use_backend",
    "worth_strips",
]
