"""What the network hands to the losses."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


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
class DenoisingQueries:
    """D noised queries per image, in groups of P positives followed by P negatives.

    Attributes:
        labels: int64 ``[B, D]``, noised; num_classes (the embedding's padding index) where padded.
        boxes_unact: float32 ``[B, D, 4]``, noised cxcywh before the sigmoid, finite.
        attn_mask: bool ``[D + Q, D + Q]``, True = the row's query may not attend to the column's.
        query_mask: bool ``[B, D]``, True = a real query.
        positive: bool ``[B, D]``, True = is to be restored to its object.
        target_index: int64 ``[B, D]``, the object in ``PaddedTargets`` that was noised.
    """

    labels: Tensor
    boxes_unact: Tensor
    attn_mask: Tensor
    query_mask: Tensor
    positive: Tensor
    target_index: Tensor


@dataclass(frozen=True)
class DenoisingPredictions:
    """The predictions for the denoising queries.

    Attributes:
        layers: one per decoder layer, for the D denoising queries.
        queries: the queries that they belong to.
    """

    layers: tuple[Predictions, ...]
    queries: DenoisingQueries


@dataclass(frozen=True)
class RouterStats:
    """What a router decided, for the load-balance loss.

    Attributes:
        probs: ``[T, E]`` softmax over the experts.
        experts: ``[T, k]`` int64, the chosen ones.
    """

    probs: Tensor
    experts: Tensor


@dataclass(frozen=True)
class DecoderOutput:
    """What the decoder predicts.

    Attributes:
        layers: predictions of the decoder layers, first to last; with lean heads, in evaluation,
            the last one only.
        encoder: the scores and boxes of the selected queries before the first layer.
        query_mask: bool ``[B, Q]``, True = a real query.
        denoising: predictions for the denoising queries, or None.
        router_stats: one per layer with experts.
    """

    layers: tuple[Predictions, ...]
    encoder: Predictions
    query_mask: Tensor
    denoising: DenoisingPredictions | None
    router_stats: tuple[RouterStats, ...]


@dataclass(frozen=True)
class TokenRows:
    """Rows of all levels and images, level by level.

    Attributes:
        rows: ``[M, C]``.
        sites: int64 ``[M, 4]``, columns (batch, level, y, x).
        table: int64 ``[B, T]``, the rows that each image may choose queries from; -1 = none.
    """

    rows: Tensor
    sites: Tensor
    table: Tensor
