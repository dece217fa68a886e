from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparse_dset.models.encoder.aifi import Aifi, column_major, sincos_position
from sparse_dset.models.moe import MoEConfig
from sparse_dset.structures import MaskedMap, SparseMap, Support

SIZE = (3, 5)
SIZES = torch.tensor([SIZE, SIZE])


def _aifi(**arguments):
    aifi = Aifi(16, 4, 24, **arguments).double()
    for parameter in aifi.parameters():
        nn.init.normal_(parameter, std=0.3)
    return aifi


def _dense():
    return torch.randn(2, 16, *SIZE, dtype=torch.float64)


def test_sincos_position():
    position = sincos_position(torch.tensor([3]), torch.tensor([7]), 8, 100.0)[0].tolist()
    omegas = (1.0, 1.0 / math.sqrt(100.0))
    expected = [f(c * w) for c in (3, 7) for f in (math.sin, math.cos) for w in omegas]
    assert position == pytest.approx(expected)
    with pytest.raises(ValueError, match="multiple of 4"):
        sincos_position(torch.tensor([3]), torch.tensor([7]), 10)


def test_column_major_lays_out_by_columns_and_reads_by_rows():
    height, width = SIZE
    y, x = torch.cartesian_prod(torch.arange(height), torch.arange(width)).unbind(1)
    columns, rows = torch.meshgrid(torch.arange(width), torch.arange(height), indexing="ij")
    first, second = column_major(y[None], x[None], torch.tensor([SIZE]))
    assert torch.equal(first[0], columns.flatten())
    assert torch.equal(second[0], rows.flatten())


def test_column_major_on_a_square_swaps_the_axes():
    y, x = torch.cartesian_prod(torch.arange(4), torch.arange(4)).unbind(1)
    first, second = column_major(y[None], x[None], torch.tensor([[4, 4]]))
    assert torch.equal(first[0], y)
    assert torch.equal(second[0], x)


@pytest.mark.parametrize("position", ["row_major", "released"])
@pytest.mark.parametrize("moe", [None, MoEConfig(4, 2), MoEConfig(4, 2, 2)])
def test_all_kinds_of_map_agree(moe, position):
    aifi, dense = _aifi(moe=moe, position=position, num_layers=2), _dense()
    full = Support.full(2, *SIZE)
    expected, stats = aifi(dense, SIZES)
    assert len(stats) == (0 if moe is None else 2)
    for kind in (MaskedMap, SparseMap):
        out, _ = aifi(kind.from_dense(dense, full), SIZES)
        torch.testing.assert_close(out.to_dense(), expected)
    pruned = Support.from_mask(torch.rand(2, *SIZE) < 0.5)
    (masked, masked_stats), (sparse, sparse_stats) = (
        aifi(kind.from_dense(dense, pruned), SIZES) for kind in (MaskedMap, SparseMap)
    )
    torch.testing.assert_close(sparse.to_dense(), masked.to_dense())
    for ours, theirs in zip(sparse_stats, masked_stats, strict=True):
        assert torch.equal(ours.experts, theirs.experts)


def test_tokens_attend_to_the_tokens_of_their_image_only():
    aifi, dense = _aifi(), _dense()
    support = Support.from_mask(torch.rand(2, *SIZE) < 0.5)
    out, _ = aifi(SparseMap.from_dense(dense, support), SIZES)
    layer = aifi.layers[0]
    attention = nn.MultiheadAttention(16, 4, batch_first=True).double()
    attention.load_state_dict(layer.self_attn.state_dict())
    for image in range(2):
        y, x = support.mask()[image].nonzero().unbind(1)
        tokens = dense[image][:, y, x].T[None]
        place = tokens + sincos_position(y, x, 16)
        tokens = layer.norm1(tokens + attention(place, place, tokens)[0])
        hidden = layer.linear2(F.gelu(layer.linear1(tokens)))
        expected = layer.norm2(tokens + hidden)[0]
        torch.testing.assert_close(out.to_dense()[image][:, y, x].T, expected)


def test_patches_share_their_experts():
    aifi, dense = _aifi(moe=MoEConfig(4, 2, 2)), _dense()
    _, (stats,) = aifi(dense, SIZES)
    experts = stats.experts.view(2, *SIZE, 2)
    for image in range(2):
        for y in range(0, 3, 2):
            for x in range(0, 5, 2):
                patch = experts[image, y : y + 2, x : x + 2].flatten(0, 1)
                assert len(patch.unique(dim=0)) == 1


def test_an_image_without_tokens_gives_no_nan():
    mask = torch.zeros(2, *SIZE, dtype=torch.bool)
    mask[0, 1, 2] = True
    for kind in (MaskedMap, SparseMap):
        out, _ = _aifi()(kind.from_dense(_dense(), Support.from_mask(mask)), SIZES)
        assert out.to_dense().isfinite().all()
        assert not out.to_dense()[1].any()


def test_an_unknown_layout_is_refused():
    with pytest.raises(ValueError, match="row_major"):
        Aifi(16, 4, 24, position="rows")
