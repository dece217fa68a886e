"""What kept tokens learn from the same network run dense."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_dset.losses.totals import StepTotals
from sparse_dset.structures import MaskedMap, SparseMap, Support
from sparse_dset.structures.maps import FeatureMap


def distillation_loss(
    maps: Sequence[FeatureMap], teacher: Sequence[FeatureMap], totals: StepTotals | None = None
) -> Tensor:
    """Returns the distance, at most 2, of maps from the same maps of a teacher, unweighted.

    The distance is one less the cosine between the features of a site. The teacher is the network
    that learns, and changes with it: distances that grow with the features would let both grow
    without end.

    Args:
        maps: of the levels, with features for the sites that they hold.
        teacher: the same levels, dense or with the padding marked.
        totals: of the step; None: these maps are all of it.
    """
    totals = StepTotals() if totals is None else totals
    distances = [_distances(own, theirs) for own, theirs in zip(maps, teacher, strict=True)]
    sums = torch.stack([distance.sum() for distance in distances])
    sites = sums.new_tensor([len(distance) for distance in distances])
    return (sums / totals.divisor("distill", sites)).mean()


def _distances(own: FeatureMap, teacher: FeatureMap) -> Tensor:
    """The distance of each site of ``own``: float32 ``[N]``."""
    dense = teacher.tensor if isinstance(teacher, MaskedMap) else teacher
    assert isinstance(dense, Tensor)
    if isinstance(own, Tensor):
        batch, _, height, width = own.shape
        own = SparseMap.from_dense(own, Support.full(batch, height, width, own.device))
    there = SparseMap.from_dense(dense, own.support).features
    rows = own if isinstance(own, SparseMap) else SparseMap.from_dense(own.tensor, own.support)
    cosine = F.cosine_similarity(rows.features.float(), there.float(), dim=1)
    return 1.0 - cosine
