"""Rows of a batch whose images hold different numbers of them, and their padded form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_dset.checks import check_has_values, check_number, check_tensor


@dataclass(frozen=True)
class Ragged:
    """Places rows into a padded batch ``[B, T]``; T (at least 1) is the fullest image's number.

    Attributes:
        slots: the place ``b * T + t`` of each row, int64 ``[N]``.
        batch_size, length: B and T.
    """

    slots: Tensor
    batch_size: int
    length: int

    @classmethod
    def from_batch_index(cls, batch: Tensor, batch_size: int) -> Ragged:
        """Lays out rows by image; rows of one image keep their order.

        Args:
            batch: each row's image, int64 ``[N]``, in any order.
        """
        check_tensor("batch", batch, "[N]", "integer")
        check_has_values("batch", batch)
        check_number("batch_size", batch_size, at_least=0, at_most=2**31 - 1, whole=True)
        if batch.dtype != torch.int64 or bool(((batch < 0) | (batch >= batch_size)).any()):
            raise ValueError(
                f"batch must be int64 in 0..{batch_size - 1}, got {batch.dtype} {batch.tolist()}"
            )
        counts = torch.bincount(batch, minlength=batch_size)
        length = max(int(counts.max()), 1) if batch_size else 1
        order = batch.argsort(stable=True)
        starts = counts.cumsum(0) - counts
        place = torch.empty_like(order)
        place[order] = torch.arange(len(batch), device=batch.device)
        return cls(batch * length + place - starts[batch], batch_size, length)

    def pad(self, rows: Tensor, value: float = 0.0) -> Tensor:
        """Turns rows ``[N, ...]`` into a padded batch ``[B, T, ...]``."""
        batch = rows.new_full((self.batch_size * self.length, *rows.shape[1:]), value)
        batch = batch.index_copy(0, self.slots, rows)
        return batch.view(self.batch_size, self.length, *rows.shape[1:])

    def unpad(self, batch: Tensor) -> Tensor:
        """Turns a padded batch ``[B, T, ...]`` into rows ``[N, ...]``."""
        return batch.flatten(0, 1).index_select(0, self.slots)

    def mask(self) -> Tensor:
        """Returns which places hold a row: bool ``[B, T]``."""
        filled = torch.ones(len(self.slots), dtype=torch.bool, device=self.slots.device)
        return self.pad(filled, False)


def take_rows(rows: Tensor, index: Tensor) -> Tensor:
    """Gathers rows; -1 gives any row (the caller masks it), also when there are no rows at all."""
    if not len(rows):
        rows = rows.sum(0, keepdim=True)  # one row of zeros, with the gradient of none
    return rows[index.clamp(min=0)]
