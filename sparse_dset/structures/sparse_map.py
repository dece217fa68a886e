"""A feature map that holds kept sites only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_dset.checks import check_tensor
from sparse_dset.structures.grid import map_to_rows, rows_to_map
from sparse_dset.structures.support import Support


@dataclass(frozen=True)
class SparseMap:
    """Features of the kept sites of one level.

    Attributes:
        features: ``[N, C]``, one row per site, in the order of ``support.indices``.
        support: where the rows lie.
    """

    features: Tensor
    support: Support

    def __post_init__(self) -> None:
        check_tensor("features", self.features, "[N, C]", "real", self.support.device)
        if self.features.shape[0] != self.support.num_sites:
            raise ValueError(
                f"features must be [{self.support.num_sites}, C] for {self.support}, "
                f"got {tuple(self.features.shape)}"
            )

    @classmethod
    def from_dense(cls, tensor: Tensor, support: Support) -> SparseMap:
        """Gathers the kept sites of a dense map ``[B, C, H, W]``."""
        check_tensor("tensor", tensor, "[B, C, H, W]", "real", support.device)
        batch, _, height, width = tensor.shape
        if (batch, height, width) != support.shape:
            raise ValueError(f"a map of shape {tuple(tensor.shape)} does not fit {support}")
        rows = map_to_rows(tensor)
        if support.is_full:
            return cls(rows, support)
        return cls(rows.index_select(0, support.flat_index()), support)

    def to_dense(self) -> Tensor:
        """Scatters the rows into a zero map ``[B, C, H, W]``."""
        batch, height, width = self.support.shape
        rows = self.features.new_zeros(batch * height * width, self.features.shape[1])
        rows = rows.index_copy(0, self.support.flat_index(), self.features)
        return rows_to_map(rows, batch, height, width)

    def with_features(self, features: Tensor) -> SparseMap:
        """Returns other features on the same support."""
        return SparseMap(features, self.support)

    def __add__(self, other: SparseMap) -> SparseMap:
        self._check_same_support(other)
        if self.features.shape != other.features.shape:
            raise ValueError(
                f"rows that are added must have the same channels, got "
                f"{tuple(self.features.shape)} and {tuple(other.features.shape)}"
            )
        return self.with_features(self.features + other.features)

    def cat(self, other: SparseMap) -> SparseMap:
        """Concatenates the channels of two maps on the same support."""
        self._check_same_support(other)
        return self.with_features(torch.cat([self.features, other.features], dim=1))

    def _check_same_support(self, other: SparseMap) -> None:
        if not self.support.same_sites(other.support):
            raise ValueError(
                f"rows align only on the same support, got {self.support} and {other.support}"
            )
