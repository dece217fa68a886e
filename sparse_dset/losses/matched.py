"""The losses of the matched queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from sparse_dset.losses.matcher import HungarianMatcher, Matches
from sparse_dset.losses.totals import StepTotals
from sparse_dset.losses.varifocal import varifocal_loss
from sparse_dset.structures.boxes import box_giou, box_iou, box_l1
from sparse_dset.structures.targets import PaddedTargets

if TYPE_CHECKING:
    from sparse_dset.structures.outputs import DenoisingPredictions, DenoisingQueries, Predictions

DEFAULT_WEIGHTS = {"vfl": 1.0, "bbox": 5.0, "giou": 2.0}


class SetCriterion(nn.Module):
    """Varifocal, L1 and GIoU losses of every layer, as in RT-DETR (Zhao et al., CVPR 2024).

    The target of a matched query's class is the IoU of its box. Every layer is matched on its own;
    the denoising queries know their objects. Everything is computed in float32.
    """

    def __init__(
        self,
        matcher: HungarianMatcher,
        weights: Mapping[str, float] = DEFAULT_WEIGHTS,
        alpha: float = 0.75,
        gamma: float = 2.0,
    ) -> None:
        """
        Args:
            matcher: finds each layer's pairs.
            weights: of the parts "vfl", "bbox" and "giou", all three.
            alpha, gamma: of the varifocal loss's negatives.

        Raises:
            ValueError: ``weights`` has other keys.
        """
        super().__init__()
        if set(weights) != set(DEFAULT_WEIGHTS):
            raise ValueError(
                f"weights must have the keys {sorted(DEFAULT_WEIGHTS)}, got {sorted(weights)}"
            )
        self.matcher = matcher
        self.weights = dict(weights)
        self.alpha = alpha
        self.gamma = gamma

    def forward(
        self,
        layers: Sequence[Predictions],
        encoder: Predictions,
        query_mask: Tensor,
        targets: PaddedTargets,
        denoising: DenoisingPredictions | None = None,
        totals: StepTotals | None = None,
    ) -> dict[str, Tensor]:
        """Computes all losses.

        Args:
            layers: the decoder layers' predictions, first to last.
            encoder: the predictions of the selected encoder tokens.
            query_mask: bool ``[B, Q]``, True = a real query; the others take no part.
            targets: the batch's targets.
            denoising: the denoising predictions, if there are any.
            totals: of the step; None: this is all of it.

        Returns:
            Weighted scalars ``loss_vfl``, ``loss_bbox`` and ``loss_giou`` of the last layer, and
            the same with the suffixes ``_aux_{i}`` (earlier layers), ``_enc`` and ``_dn_{i}``.

        Raises:
            RuntimeError: predictions are not finite.
        """
        suffixes = [*(f"_aux_{index}" for index in range(len(layers) - 1)), "", "_enc"]
        predictions = [*layers, encoder]
        matches = self.matcher(predictions, query_mask, targets)
        totals = StepTotals() if totals is None else totals
        num_boxes = totals.divisor("objects", targets.mask.sum().float())
        losses: dict[str, Tensor] = {}
        for suffix, layer, pairs in zip(suffixes, predictions, matches, strict=True):
            losses |= self._layer(layer, pairs, query_mask, targets, num_boxes, suffix)
        if denoising is not None:
            losses |= self._denoising(denoising, targets, num_boxes)
        return losses

    def _denoising(
        self, denoising: DenoisingPredictions, targets: PaddedTargets, num_boxes: Tensor
    ) -> dict[str, Tensor]:
        queries = denoising.queries
        pairs = _known_matches(queries)
        # Every object stands in several groups, and crowded images give only some of theirs. Each
        # pass has groups of its own number; an object weighs the same in all of them.
        copies = queries.positive.sum() / targets.mask.sum()
        losses: dict[str, Tensor] = {}
        for index, layer in enumerate(denoising.layers):
            losses |= self._layer(
                layer,
                pairs,
                queries.query_mask,
                targets,
                num_boxes * copies,
                f"_dn_{index}",
            )
        return losses

    def _layer(
        self,
        predictions: Predictions,
        pairs: Matches,
        query_mask: Tensor,
        targets: PaddedTargets,
        num_boxes: Tensor,
        suffix: str,
    ) -> dict[str, Tensor]:
        boxes = predictions.boxes[pairs.batch_index, pairs.query_index].float()
        objects = targets.boxes[pairs.batch_index, pairs.target_index]
        quality = box_iou(boxes.detach(), objects)
        labels = targets.labels[pairs.batch_index, pairs.target_index]
        parts = {
            "vfl": self._classification(predictions.logits, pairs, labels, quality, query_mask),
            "bbox": box_l1(boxes, objects).sum(),
            "giou": (1 - box_giou(boxes, objects)).sum(),
        }
        return {
            f"loss_{name}{suffix}": self.weights[name] * value / num_boxes
            for name, value in parts.items()
        }

    def _classification(
        self, logits: Tensor, pairs: Matches, labels: Tensor, quality: Tensor, query_mask: Tensor
    ) -> Tensor:
        # Masked queries may hold any number, even an infinite one.
        logits = logits.float().masked_fill(~query_mask[..., None], 0.0)
        score = logits.new_zeros(logits.shape)
        score[pairs.batch_index, pairs.query_index, labels] = quality
        positive = logits.new_zeros(logits.shape)
        positive[pairs.batch_index, pairs.query_index, labels] = 1.0
        loss = varifocal_loss(logits, score, positive, self.alpha, self.gamma)
        return (loss * query_mask[..., None]).sum()


def _known_matches(queries: DenoisingQueries) -> Matches:
    batch_index, query_index = queries.positive.nonzero(as_tuple=True)
    return Matches(batch_index, query_index, queries.target_index[batch_index, query_index])
