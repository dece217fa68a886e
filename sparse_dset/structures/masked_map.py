"""A dense map that is zero outside its support."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_dset.checks import check_tensor
from sparse_dset.structures.support import Support


@dataclass(frozen=True)
class MaskedMap:
    """A dense map whose sites outside the support are zero: what a ``SparseMap`` stands for.

    It carries padded batches through dense executions, and with a pruned support it is the oracle
    of the sparse execution.

    Attributes:
        tensor: ``[B, C, H, W]``.
        support: the sites that count.
    """

    tensor: Tensor
    support: Support

    @classmethod
    def from_dense(cls, tensor: Tensor, support: Support) -> MaskedMap:
        """Sets every site outside the support to zero."""
        check_tensor("tensor", tensor, "[B, C, H, W]", "real", support.device)
        batch, _, height, width = tensor.shape
        if (batch, height, width) != support.shape:
            raise ValueError(f"a map of shape {tuple(tensor.shape)} does not fit {support}")
        return cls(tensor.masked_fill(~support.mask().unsqueeze(1), 0.0), support)

    def to_dense(self) -> Tensor:
        """Returns the tensor ``[B, C, H, W]``."""
        return self.tensor

    def __add__(self, other: MaskedMap) -> MaskedMap:
        self._check_same_support(other)
        return MaskedMap(self.tensor + other.tensor, self.support)

    def cat(self, other: MaskedMap) -> MaskedMap:
        """Concatenates the channels of two maps on the same support."""
        self._check_same_support(other)
        return MaskedMap(torch.cat([self.tensor, other.tensor], dim=1), self.support)

    def _check_same_support(self, other: MaskedMap) -> None:
        if not self.support.same_sites(other.support):
            raise ValueError(
                f"maps combine only on the same support, got {self.support} and {other.support}"
            )
