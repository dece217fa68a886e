from __future__ import annotations

import pytest
import torch

from sparse_dset.structures.ragged import Ragged, take_rows


@pytest.mark.parametrize("counts", [[3, 1, 0, 2], [0, 0], [4], [0], [0, 5]])
def test_round_trip(counts):
    batch = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    batch = batch[torch.randperm(len(batch))]
    rows = torch.randn(len(batch), 3)
    ragged = Ragged.from_batch_index(batch, len(counts))
    padded = ragged.pad(rows, -1.0)
    assert padded.shape == (len(counts), max(*counts, 1), 3)
    assert torch.equal(ragged.unpad(padded), rows)
    assert ragged.mask().sum(1).tolist() == counts
    assert (padded[~ragged.mask()] == -1.0).all()
    for image, count in enumerate(counts):
        assert torch.equal(padded[image, :count], rows[batch == image])


def test_an_empty_batch():
    ragged = Ragged.from_batch_index(torch.zeros(0, dtype=torch.int64), 0)
    assert ragged.pad(torch.zeros(0, 3)).shape == (0, 1, 3)


def test_gradients():
    ragged = Ragged.from_batch_index(torch.tensor([1, 0, 1]), 2)
    rows = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: ragged.unpad(ragged.pad(x) ** 2), rows)


@pytest.mark.parametrize("rows", [torch.zeros(0, 3), torch.randn(4, 3)])
def test_taking_rows_that_do_not_exist(rows):
    taken = take_rows(rows, torch.tensor([[-1, -1]]))
    assert taken.shape == (1, 2, 3)
