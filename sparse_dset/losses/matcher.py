"""One-to-one matching of queries and objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sparse_dset.structures.boxes import pairwise_giou, pairwise_l1
from sparse_dset.structures.targets import PaddedTargets

if TYPE_CHECKING:
    from sparse_dset.structures.outputs import Predictions


@dataclass(frozen=True)
class Matches:
    """Pairs of a query and an object: three int64 vectors ``[M]`` of the same length."""

    batch_index: Tensor
    query_index: Tensor
    target_index: Tensor


@dataclass(frozen=True)
class HungarianMatcher:
    """The cheapest one-to-one matching of queries and objects (DETR, Carion et al., ECCV 2020).

    The cost of a pair is ``cost_class`` x focal cost + ``cost_bbox`` x L1 - ``cost_giou`` x GIoU.

    Attributes:
        cost_class, cost_bbox, cost_giou: weights of the three parts, at least 0.
        alpha, gamma: of the focal cost.
    """

    cost_class: float = 2.0
    cost_bbox: float = 5.0
    cost_giou: float = 2.0
    alpha: float = 0.25
    gamma: float = 2.0

    @torch.no_grad()
    def __call__(
        self, layers: Sequence[Predictions], query_mask: Tensor, targets: PaddedTargets
    ) -> list[Matches]:
        """Matches every layer on its own; all costs go to the CPU in one transfer.

        Args:
            layers: predictions with logits ``[B, Q, K]`` and boxes ``[B, Q, 4]``.
            query_mask: bool ``[B, Q]``, True = a real query; the others are never matched.
            targets: the batch's targets.

        Returns:
            One ``Matches`` per layer, with min(real queries, objects) pairs per image.

        Raises:
            RuntimeError: a cost is not finite; the message names what it is made of that is not
                finite, with the layer, the image, the query and the target.
        """
        costs = torch.stack([self.cost(layer, targets) for layer in layers]).cpu().numpy()
        queries = [np.flatnonzero(row) for row in query_mask.cpu().numpy()]
        num_objects = targets.mask.sum(dim=1).tolist()
        return [
            self._solve(cost, queries, num_objects, layer, index, targets)
            for index, (cost, layer) in enumerate(zip(costs, layers, strict=True))
        ]

    def cost(self, predictions: Predictions, targets: PaddedTargets) -> Tensor:
        """Returns the cost of every pair: float32 ``[B, Q, G]``."""
        labels = targets.labels[:, None].expand(-1, predictions.logits.shape[1], -1)
        logits = predictions.logits.float().gather(2, labels)
        probability = logits.sigmoid()
        positive = self.alpha * (1 - probability).pow(self.gamma) * F.softplus(-logits)
        negative = (1 - self.alpha) * probability.pow(self.gamma) * F.softplus(logits)
        return (
            self.cost_class * (positive - negative)
            + self.cost_bbox * pairwise_l1(predictions.boxes, targets.boxes)
            - self.cost_giou * pairwise_giou(predictions.boxes, targets.boxes)
        )

    @staticmethod
    def _solve(
        cost: np.ndarray,
        queries: list[np.ndarray],
        num_objects: list[int],
        predictions: Predictions,
        layer: int,
        targets: PaddedTargets,
    ) -> Matches:
        """Solves one layer, image by image, on real queries and objects only."""
        pairs = []
        for image, (rows, count) in enumerate(zip(queries, num_objects, strict=True)):
            real_cost = cost[image, rows, :count]
            bad = np.argwhere(~np.isfinite(real_cost))
            if len(bad):
                query, target = int(rows[bad[0, 0]]), int(bad[0, 1])
                raise RuntimeError(
                    _describe_non_finite(predictions, targets, layer, image, query, target)
                )
            query, target = linear_sum_assignment(real_cost)
            pairs.append(np.stack([np.full_like(query, image), rows[query], target]))
        flat = torch.from_numpy(np.concatenate(pairs, axis=1)).to(
            predictions.boxes.device, torch.int64
        )
        return Matches(*flat.unbind(0))


def _describe_non_finite(
    predictions: Predictions,
    targets: PaddedTargets,
    layer: int,
    image: int,
    query: int,
    target: int,
) -> str:
    """Says which of the numbers that a cost is made of is not finite."""
    label = int(targets.labels[image, target])
    logit = predictions.logits[image, query, label].float()
    box = predictions.boxes[image, query].float()
    goal = targets.boxes[image, target].float()
    place = f"of layer {layer}, image {image} of the batch{_known_as(targets, image)}"
    ids = f" (the batch's image ids: {list(targets.image_ids)})"
    predicted = {f"pred_logits {place}, query {query}, class {label}": logit}
    predicted[f"pred_boxes {place}, query {query}"] = box
    if not goal.isfinite().all():
        return (
            f"the box of target {target} of image {image} of the batch{_known_as(targets, image)} "
            f"is not finite: {goal.tolist()}; drop it when the data are loaded{ids}"
        )
    bad = {name: value for name, value in predicted.items() if not value.isfinite().all()}
    if bad:
        return (
            f"not finite: {_listed(bad)}: training has diverged; lower the learning rate or turn "
            f"mixed precision off{ids}"
        )
    return (
        f"the cost of query {query} and target {target} is not finite, though all that it is made "
        f"of is: {_listed({**predicted, 'the box of the target': goal})}. One of them is too large "
        f"for float32: lower the learning rate, or look at the target{ids}"
    )


def _listed(values: dict[str, Tensor]) -> str:
    return "; ".join(f"{name} = {value.tolist()}" for name, value in values.items())


def _known_as(targets: PaddedTargets, image: int) -> str:
    return f" (id {targets.image_ids[image]})" if targets.image_ids else ""
