"""What the decoder hands to the losses."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sparse_dset.models.decoder.denoising import DenoisingQueries


@dataclass(frozen=True)
class Predictions:
    """The predictions of one layer.

    Attributes:
        logits: ``[B, Q, K]``.
        boxes: ``[B, Q, 4]``, cxcywh in [0, 1] of the image's own size.
    """

    logits: Tensor
    boxes: Tensor


@dataclass(frozen=True)
class DenoisingPredictions:
    """The predictions for the denoising queries.

    Attributes:
        layers: one per decoder layer, for the D denoising queries.
        queries: the queries that they belong to.
    """

    layers: tuple[Predictions, ...]
    queries: DenoisingQueries
