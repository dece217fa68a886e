"""What pruned tokens are taught: the maps of the same network when it keeps every token."""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_dset.models.detector import Detector
from sparse_dset.models.evaluation_mode import switched_to_evaluation
from sparse_dset.structures.maps import FeatureMap


@torch.no_grad()
def teacher_maps(
    model: Detector, images: Tensor, padding_mask: Tensor | None = None
) -> list[FeatureMap]:
    """Returns the neck's maps of the dense execution in evaluation; the model stays as it was.

    Args:
        images, padding_mask: see ``Detector.forward``.
    """
    with switched_to_evaluation(model):
        return model.dense_maps(images, padding_mask)
