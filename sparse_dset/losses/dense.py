"""Dense one-to-many supervision beside the matched queries, in training only."""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_dset.losses.totals import StepTotals
from sparse_dset.losses.varifocal import varifocal_loss
from sparse_dset.structures.boxes import box_giou, box_iou, box_l1
from sparse_dset.structures.outputs import DensePredictions
from sparse_dset.structures.targets import PaddedTargets

# Floors that keep every candidate's alignment above 0, so that an object whose candidates do not
# overlap it yet is still learnt.
_MIN_SCORE = 1e-4
_MIN_OVERLAP = 0.01


@torch.no_grad()
def task_aligned_assign(
    scores: Tensor,
    boxes: Tensor,
    centers: Tensor,
    token_sizes: Tensor,
    token_mask: Tensor,
    targets: PaddedTargets,
    topk: int = 10,
    alpha: float = 1.0,
    beta: float = 6.0,
    radius: float = 1.5,
) -> tuple[Tensor, Tensor]:
    """Task-aligned assignment (TOOD, Feng et al., ICCV 2021) of tokens to objects.

    A token is an object's candidate when its centre lies in the object's box, or within ``radius``
    cells of the box's centre along both axes. Each object takes the ``topk`` candidates of highest
    alignment ``score ** alpha * iou ** beta``; a token that several take goes to the object that
    its box overlaps most.

    Args:
        scores: probabilities ``[B, T, K]``.
        boxes: predicted cxcywh ``[B, T, 4]`` in [0, 1].
        centers: (x, y) of the tokens' cells ``[B, T, 2]`` in [0, 1] of the image's own size.
        token_sizes: (width, height) of the tokens' cells ``[B, T, 2]``, in the same unit.
        token_mask: bool ``[B, T]``, True = a real token.
        targets: the batch's targets.
        topk: tokens per object at most.
        alpha, beta: exponents of the alignment.
        radius: in cells of the token's level; gives objects smaller than a cell their candidates.

    Returns:
        target_index: int64 ``[B, T]``, the token's object, or -1.
        quality: float32 ``[B, T]`` in [0, 1], the alignment scaled so that the largest of an object
            is its largest IoU; 0 where unassigned.
    """
    if targets.mask.shape[1] == 0:
        return token_mask.long() * 0 - 1, token_mask.float() * 0
    candidates = _candidates(centers, token_sizes, token_mask, targets, radius)
    batch, target, token = candidates.nonzero(as_tuple=True)
    pair_overlap = box_iou(boxes[batch, token], targets.boxes[batch, target])
    pair_overlap = pair_overlap.clamp(min=_MIN_OVERLAP)
    pair_score = scores[batch, token, targets.labels[batch, target]].float().clamp(min=_MIN_SCORE)

    overlap = pair_overlap.new_zeros(candidates.shape)
    overlap[batch, target, token] = pair_overlap
    alignment = torch.zeros_like(overlap)
    alignment[batch, target, token] = pair_score.pow(alpha) * pair_overlap.pow(beta)

    best = alignment.topk(min(topk, alignment.shape[2]), dim=2).indices
    taken = torch.zeros_like(overlap).scatter_(2, best, 1.0)
    token_overlap, target_index = (overlap * taken).max(dim=1)
    assigned = token_overlap > 0
    quality = _quality(overlap, alignment, target_index, assigned)
    return target_index.masked_fill(~assigned, -1), quality


def _candidates(
    centers: Tensor, token_sizes: Tensor, token_mask: Tensor, targets: PaddedTargets, radius: float
) -> Tensor:
    """Which tokens each object may take: bool ``[B, G, T]``."""
    inside = near = targets.mask[:, :, None] & token_mask[:, None, :]
    for axis in range(2):
        distance = (targets.boxes[:, :, None, axis] - centers[:, None, :, axis]).abs()
        inside = inside & (distance <= targets.boxes[:, :, None, axis + 2] / 2)
        near = near & (distance <= radius * token_sizes[:, None, :, axis])
    return inside | near


def _quality(overlap: Tensor, alignment: Tensor, target_index: Tensor, assigned: Tensor) -> Tensor:
    """Scales each object's alignments so that the largest becomes its largest IoU."""
    chosen = target_index[:, None]
    token_alignment = alignment.gather(1, chosen).squeeze(1) * assigned
    token_overlap = overlap.gather(1, chosen).squeeze(1) * assigned
    empty = alignment.new_zeros(alignment.shape[:2])
    most_aligned = empty.scatter_reduce(1, target_index, token_alignment, "amax")
    most_overlap = empty.scatter_reduce(1, target_index, token_overlap, "amax")
    scale = most_overlap / most_aligned.clamp(min=torch.finfo(torch.float32).tiny)
    return token_alignment * scale.gather(1, target_index)


class DenseSupervision:
    """One-to-many supervision of what every token predicts."""

    def __init__(
        self,
        weight_cls: float = 1.0,
        weight_box: float = 2.0,
        topk: int = 10,
        radius: float = 1.5,
    ) -> None:
        """
        Args:
            weight_cls, weight_box: weights of the two losses.
            topk, radius: see ``task_aligned_assign``.
        """
        self.weight_cls = weight_cls
        self.weight_box = weight_box
        self.topk = topk
        self.radius = radius

    def __call__(
        self,
        predictions: DensePredictions,
        targets: PaddedTargets,
        totals: StepTotals | None = None,
    ) -> dict[str, Tensor]:
        """Computes the weighted losses.

        Args:
            predictions: of every token.
            targets: the batch's targets.
            totals: of the step; None: this is all of it.

        Returns:
            ``loss_dense_cls`` (varifocal) and ``loss_dense_box`` (1 - GIoU + L1, weighted by the
            quality), float32 scalars divided by the sum of the qualities (at least 1).
        """
        logits, boxes = predictions.logits, predictions.boxes
        target_index, quality = task_aligned_assign(
            logits.sigmoid(),
            boxes,
            predictions.centers,
            predictions.cell_sizes,
            predictions.mask,
            targets,
            topk=self.topk,
            radius=self.radius,
        )
        batch, token = (target_index >= 0).nonzero(as_tuple=True)
        target = target_index[batch, token]
        weight = quality[batch, token]
        labels = targets.labels[batch, target]

        score = torch.zeros_like(logits)
        score[batch, token, labels] = weight
        positive = torch.zeros_like(logits)
        positive[batch, token, labels] = 1.0
        loss_cls = varifocal_loss(logits, score, positive, alpha=0.75, gamma=2.0)
        loss_cls = (loss_cls * predictions.mask[..., None]).sum()

        found, objects = boxes[batch, token], targets.boxes[batch, target]
        loss_box = (weight * (1 - box_giou(found, objects) + box_l1(found, objects))).sum()
        totals = StepTotals() if totals is None else totals
        divisor = totals.divisor("dense", quality.sum())
        return {
            "loss_dense_cls": self.weight_cls * loss_cls / divisor,
            "loss_dense_box": self.weight_box * loss_box / divisor,
        }
