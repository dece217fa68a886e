"""The two kinds of memory, and deformable attention over them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparse_dset.models.decoder.deformable_attention import MSDeformableAttention
from sparse_dset.models.decoder.memory import read_maps
from sparse_dset.structures import MaskedMap, SparseMap, Support
from sparse_dset.structures.geometry import Geometry
from tests.models.detectors import nested_masks

WIDTH, HEADS, POINTS = 8, 2, 4
SIZE = (96, 160)


def _attention():
    attention = MSDeformableAttention(WIDTH, HEADS, 3, POINTS).double()
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.5)
    return attention


def _tensors(batch=2):
    return [
        torch.randn(batch, WIDTH, SIZE[0] // s, SIZE[1] // s, dtype=torch.float64)
        for s in (8, 16, 32)
    ]


def _queries(batch=2, count=9):
    query = torch.randn(batch, count, WIDTH, dtype=torch.float64)
    return query, torch.rand(batch, count, 4, dtype=torch.float64)


def _geometry(*sizes):
    return Geometry(torch.tensor(sizes, dtype=torch.float32), SIZE, any(s != SIZE for s in sizes))


def _by_hand(attention, tensors, query, boxes):
    """RT-DETRv2's formula, head by head and level by level."""
    batch, count, _ = query.shape
    offsets = attention.sampling_offsets(query).view(batch, count, HEADS, 3, POINTS, 2)
    weights = attention.attention_weights(query).view(batch, count, HEADS, -1).softmax(-1)
    weights = weights.view(batch, count, HEADS, 3, POINTS)
    dim = WIDTH // HEADS
    heads = []
    for h in range(HEADS):
        total = 0
        for level, tensor in enumerate(tensors):
            value = attention.value_proj(tensor.movedim(1, -1)).movedim(-1, 1)
            value = value[:, h * dim : (h + 1) * dim]
            reach = offsets[:, :, h, level] / POINTS * boxes[:, :, None, 2:] * 0.5
            grid = 2 * (boxes[:, :, None, :2] + reach) - 1
            sampled = F.grid_sample(value, grid, align_corners=False)  # [B, dim, Q, P]
            total = total + (sampled * weights[:, None, :, h, level]).sum(-1)
        heads.append(total.transpose(1, 2))
    return attention.output_proj(torch.cat(heads, -1))


def test_attention_equals_the_formula():
    attention, tensors, (query, boxes) = _attention(), _tensors(), _queries()
    expected = _by_hand(attention, tensors, query, boxes)
    extents = _geometry(SIZE, SIZE).extents().double()
    full = [Support.full(2, *t.shape[2:]) for t in tensors]
    sparse = [SparseMap.from_dense(t, s) for t, s in zip(tensors, full, strict=True)]
    for maps in (tensors, sparse):
        memory = read_maps(maps, None)
        ours = attention(query, boxes, memory, None, extents)
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("sizes", [(SIZE, SIZE), ((60, 101), (96, 77)), ((1, 1), SIZE)])
def test_both_memories_give_the_same(sizes, learned):
    attention, (query, boxes) = _attention(), _queries()
    background = torch.randn(3, WIDTH, dtype=torch.float64) if learned else None
    geometry = _geometry(*sizes)
    extents, valid = geometry.extents().double(), geometry.valid_masks()
    kept = [m & v for m, v in zip(nested_masks((3, 5), [0.6, 0.4]), valid, strict=True)]
    results = []
    for kind in (MaskedMap, SparseMap):
        tensors = [t.requires_grad_() for t in _tensors_fixed()]
        maps = [
            kind.from_dense(t, Support.from_mask(m)) for t, m in zip(tensors, kept, strict=True)
        ]
        memory = read_maps(maps, background)
        out = attention(query, boxes, memory, background, extents)
        assert memory.table.ge(0).sum(1).tolist() == [
            sum(int(m[i].sum()) for m in kept) for i in range(2)
        ]
        real = memory.table[memory.table >= 0]
        results.append((out, memory.sites[real], memory.rows[real]))
        results[-1] += tuple(torch.autograd.grad(out.sum(), tensors))
    assert torch.equal(results[0][1], results[1][1])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def _tensors_fixed():
    torch.manual_seed(7)
    return _tensors()


def test_pruned_sites_read_the_background_and_padding_reads_zero():
    """A constant field: kept rows, holes and padding can be told apart by their values."""
    attention = MSDeformableAttention(WIDTH, HEADS, 3, POINTS).double()
    with torch.no_grad():
        attention.sampling_offsets.bias.zero_()
        for projection in (attention.value_proj, attention.output_proj):
            projection.weight.copy_(torch.eye(WIDTH))
    geometry = _geometry((64, 96), SIZE)
    empty = [torch.zeros_like(m) for m in geometry.valid_masks()]
    background = torch.ones(3, WIDTH, dtype=torch.float64)
    boxes = torch.tensor([[[0.5, 0.5, 0.1, 0.1], [1.3, 0.5, 0.1, 0.1]]], dtype=torch.float64)
    for kind in (MaskedMap, SparseMap):
        maps = [
            kind.from_dense(t, Support.from_mask(m)) for t, m in zip(_tensors(), empty, strict=True)
        ]
        memory = read_maps(maps, background)
        out = attention(
            torch.zeros(2, 2, WIDTH, dtype=torch.float64),
            boxes.expand(2, -1, -1),
            memory,
            background,
            geometry.extents().double(),
        )
        torch.testing.assert_close(out[:, 0], torch.ones_like(out[:, 0]))
        torch.testing.assert_close(out[:, 1], torch.zeros_like(out[:, 1]))


def test_rows_are_in_the_order_of_level_image_and_place():
    memory = read_maps(_tensors(), None)
    sites = memory.sites.tolist()
    assert sites == sorted(sites, key=lambda site: (site[1], site[0], *site[2:]))
    assert memory.table.shape == (2, 240 + 60 + 15)
    assert memory.sites[memory.table[1, 240 + 7]].tolist() == [1, 1, 0, 7]
