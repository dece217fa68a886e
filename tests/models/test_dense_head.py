from __future__ import annotations

import torch

from sparse_dset.losses.dense import DenseSupervision
from sparse_dset.models.decoder.memory import read_maps
from sparse_dset.models.dense_head import DenseHead
from sparse_dset.structures import SparseMap, Support
from sparse_dset.structures.geometry import pad_batch
from sparse_dset.structures.targets import pad_targets


def _memory(width: int, kept: torch.Tensor):
    """Rows of three levels of a batch of 2 images of 64x96 pixels, nested under ``kept``."""
    maps = []
    for scale in (4, 2, 1):
        mask = kept.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
        dense = torch.randn(2, width, *mask.shape[1:])
        maps.append(SparseMap.from_dense(dense, Support.from_mask(mask)))
    return read_maps(maps, None), pad_batch(torch.rand(2, 3, 64, 96), None)[1]


def test_it_starts_at_rare_objects_of_three_cells() -> None:
    kept = torch.tensor([[[True, False, True], [False, True, False]]]).repeat(2, 1, 1)
    kept[1, 0] = False  # the other image has fewer tokens
    memory, geometry = _memory(16, kept)
    out = DenseHead(16, 3)(memory, geometry)
    assert out.logits.shape == (2, 63, 3)
    assert out.mask.sum(1).tolist() == [63, 21]
    torch.testing.assert_close(out.logits.sigmoid(), torch.full_like(out.logits, 0.01))
    sizes, centers = out.boxes[..., 2:][out.mask], out.boxes[..., :2][out.mask]
    expected = (3 * out.cell_sizes)[out.mask].clamp(max=1 - 1e-4)
    torch.testing.assert_close(sizes, expected)
    torch.testing.assert_close(centers, out.centers[out.mask])
    assert centers.min() > 0
    assert centers.max() < 1


def test_it_learns_a_fixed_batch() -> None:
    memory, geometry = _memory(32, torch.ones(2, 2, 3, dtype=torch.bool))
    head, loss = DenseHead(32, 3), DenseSupervision()
    boxes = torch.tensor([[0.3, 0.4, 0.2, 0.3], [0.7, 0.6, 0.3, 0.2]])
    targets = pad_targets([{"labels": torch.tensor([0, 2]), "boxes": boxes}] * 2, 3, "cpu")
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3)
    values = []
    for _ in range(150):
        losses = loss(head(memory, geometry), targets)
        optimizer.zero_grad()
        sum(losses.values()).backward()  # type: ignore[union-attr]
        optimizer.step()
        values.append(float(losses["loss_dense_box"].detach()))
    assert values[-1] < 0.3 * values[0]


def test_nothing_kept() -> None:
    memory, geometry = _memory(16, torch.zeros(2, 2, 3, dtype=torch.bool))
    head = DenseHead(16, 3)
    out = head(memory, geometry)
    assert not out.mask.any()
    (out.logits * out.mask[..., None]).sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in head.parameters())
