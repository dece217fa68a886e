"""The three kinds of feature maps that flow through a network."""

from __future__ import annotations

from torch import Tensor

from sparse_dset.structures.masked_map import MaskedMap
from sparse_dset.structures.sparse_map import SparseMap

FeatureMap = Tensor | MaskedMap | SparseMap
