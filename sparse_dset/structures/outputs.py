"""What the network returns, and what the criterion reads of it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sparse_dset.structures.geometry import Geometry
from sparse_dset.structures.maps import FeatureMap


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


@dataclass(frozen=True)
class DensePredictions:
    """What every token predicts, in training, beside the queries.

    Attributes:
        logits: float32 ``[B, T, K]``; T may be 0.
        boxes: float32 ``[B, T, 4]``, cxcywh in [0, 1] of the image's own size.
        centers: (x, y) of the tokens' cells ``[B, T, 2]``, in the same unit.
        cell_sizes: (width, height) of the tokens' cells ``[B, T, 2]``, in the same unit.
        mask: bool ``[B, T]``, True = a real token.
    """

    logits: Tensor
    boxes: Tensor
    centers: Tensor
    cell_sizes: Tensor
    mask: Tensor


@dataclass(frozen=True)
class SupervisedOutput:
    """What the criterion reads, beside the targets.

    Attributes:
        decoder: all that the decoder predicts.
        router_stats: of the encoder's experts, one per layer that has some.
        token_scores: logits ``[B, H_l, W_l]`` of the levels that decide, finest first.
        dense: what every token predicts; None in evaluation, and without heads for it.
        maps: the neck's, which distillation compares with those of a teacher.
        pruned: whether the execution leaves tokens out.
        geometry: where each image ends.
    """

    decoder: DecoderOutput
    router_stats: tuple[RouterStats, ...]
    token_scores: tuple[Tensor, ...]
    dense: DensePredictions | None
    maps: tuple[FeatureMap, ...]
    pruned: bool
    geometry: Geometry


@dataclass(frozen=True)
class DetectorOutput:
    """What the detector returns.

    Attributes:
        pred_logits: ``[B, Q, K]`` before the sigmoid, at least float32.
        pred_boxes: ``[B, Q, 4]``, cxcywh in [0, 1] of each image without its padding.
        query_mask: bool ``[B, Q]``; False for the padding queries of images with fewer tokens than
            queries, whose logits are very low.
        token_scores: logits ``[B, H_l, W_l]`` of the levels that decide, finest first; None when
            nothing asked for them.
        kept: bool ``[B, H_l, W_l]`` per level, finest first: the tokens that were kept.
        num_kept: int64 ``[B, L]``, how many of them.
        num_tokens: int64 ``[B, L]``, how many there were without padding.
        supervised: what the criterion reads; None where no targets were given.
        execution, backend: what ran; the backend is that of the sparse operators.
    """

    pred_logits: Tensor
    pred_boxes: Tensor
    query_mask: Tensor
    token_scores: tuple[Tensor, ...] | None
    kept: tuple[Tensor, ...]
    num_kept: Tensor
    num_tokens: Tensor
    supervised: SupervisedOutput | None
    execution: str
    backend: str
