"""Which operators are neither convolutions nor matrix products, whose FLOPs alone count.

An operator that is neither listed here nor has a FLOP formula is one whose products nobody knows.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

_REDUCTIONS = """
sum mean prod amax amin aminmax _aminmax max min argmax argmin any all std std_mean var var_mean
norm linalg_vector_norm logsumexp nansum median nanmedian mode kthvalue count_nonzero trace bincount
histc histogram cumsum cumprod cummax cummin _cummax_helper _cummin_helper logcumsumexp
_logcumsumexp segment_reduce equal is_same_size _is_all_true _is_any_true
"""

_NORMALISATIONS = """
_softmax _log_softmax softmax log_softmax _safe_softmax _masked_softmax native_batch_norm
_native_batch_norm_legit _native_batch_norm_legit_no_training _native_batch_norm_legit_functional
_batch_norm_no_update _batch_norm_with_update _batch_norm_with_update_functional cudnn_batch_norm
miopen_batch_norm batch_norm_stats batch_norm_elemt batch_norm_gather_stats
batch_norm_gather_stats_with_counts batch_norm_update_stats native_layer_norm native_group_norm
_fused_rms_norm _weight_norm_interface renorm native_dropout _prelu_kernel glu rrelu_with_noise
floor_divide mse_loss smooth_l1_loss huber_loss nll_loss_forward nll_loss2d_forward
"""

_POOLING_AND_RESAMPLING = """
avg_pool1d avg_pool2d avg_pool3d max_pool2d_with_indices max_pool3d_with_indices max_unpool2d
max_unpool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d
_adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d fractional_max_pool2d mkldnn_max_pool2d
mkldnn_adaptive_avg_pool2d upsample_nearest1d upsample_nearest2d upsample_nearest3d
_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d upsample_linear1d
upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d _upsample_bilinear2d_aa
_upsample_bicubic2d_aa grid_sampler_2d grid_sampler_3d _grid_sampler_2d_cpu_fallback
"""

_INDEXING = """
index index_put _index_put_impl _unsafe_index _unsafe_index_put index_select index_add index_copy
index_fill index_reduce gather scatter scatter_add scatter_reduce masked_fill masked_scatter
masked_select take put where nonzero nonzero_static embedding embedding_renorm searchsorted
bucketize isin sort topk unique_consecutive unique_dim unique_dim_consecutive _unique _unique2
select_scatter slice_scatter diagonal_scatter as_strided_scatter
"""

_COPIES = """
cat stack _stack _chunk_cat clone copy _to_copy _copy_from repeat repeat_interleave roll flip rot90
constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d
replication_pad2d replication_pad3d im2col col2im pixel_shuffle pixel_unshuffle channel_shuffle tril
triu diag_embed block_diag _unsafe_view _reshape_alias _reshape_copy resize resize_as set lift
lift_fresh lift_fresh_copy detach squeeze unsqueeze transpose t as_strided unsafe_split
unsafe_split_with_sizes split_with_sizes_copy unfold_copy to_mkldnn to_padded_tensor _to_dense
_pin_memory record_stream _local_scalar_dense item _assert_async _assert_scalar
_assert_tensor_metadata _linalg_check_errors
complex polar view_as_real view_as_complex promote_types result_type can_cast is_floating_point
is_complex size stride dim numel sym_size sym_stride sym_numel sym_storage_offset
"""

_MADE = """
empty empty_like empty_strided empty_permuted new_empty new_empty_strided full full_like new_full
zeros zeros_like new_zeros ones ones_like new_ones zero fill scalar_tensor arange range linspace
logspace eye tril_indices triu_indices rand rand_like randn randn_like randint randint_like randperm
normal uniform random bernoulli exponential multinomial poisson _efficientzerotensor
"""

_OF_OTHERS = """
sparse_dset::inverse_table sparse_dset::window_table sparse_dset::parent_rows
sparse_dset::sites_of_mask sparse_dset::deform_attn_cpu torchvision::nms torchvision::roi_align
torchvision::roi_pool torchvision::ps_roi_align torchvision::ps_roi_pool prim::device
"""
"""Tables, and sampling, which ``count_flops`` states beside the total."""

_FREE = frozenset(
    f"aten::{name}"
    for text in (_REDUCTIONS, _NORMALISATIONS, _POOLING_AND_RESAMPLING, _INDEXING, _COPIES, _MADE)
    for name in text.split()
) | frozenset(_OF_OTHERS.split())
_FREE_LIBRARIES = frozenset({"torch_scatter", "profiler"})


@functools.cache
def multiplies_nothing(operator: Any) -> bool:
    """Tells whether a dispatched operator is known to be neither a convolution nor a product.

    Views, elementwise arithmetic, reductions, normalisations, pooling, resampling, indexing and
    copies are.

    Args:
        operator: an overload, as ``__torch_dispatch__`` gets it.
    """
    library, _, name = operator._schema.name.partition("::")
    packet = operator.overloadpacket
    overloads = [getattr(packet, overload) for overload in packet.overloads()]
    return (
        operator.is_view
        or any(torch.Tag.pointwise in overload.tags for overload in overloads)
        or library in _FREE_LIBRARIES
        or f"{library}::{name.rstrip('_')}" in _FREE
    )
