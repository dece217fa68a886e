"""All losses of the detector in one place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_dset.checks import check_number
from sparse_dset.losses.balance import load_balance_loss, router_counts
from sparse_dset.losses.cass import CassLoss
from sparse_dset.losses.criterion import SetCriterion
from sparse_dset.losses.dense import DenseSupervision
from sparse_dset.losses.matcher import HungarianMatcher
from sparse_dset.losses.totals import StepTotals
from sparse_dset.structures import MaskedMap, SparseMap, Support
from sparse_dset.structures.geometry import Geometry, cell_boxes
from sparse_dset.structures.maps import FeatureMap
from sparse_dset.structures.outputs import DecoderOutput, RouterStats, TokenRows
from sparse_dset.structures.ragged import take_rows
from sparse_dset.structures.targets import PaddedTargets


class Losses(nn.Module):
    """Detection, token supervision, load balance, and dense supervision.

    Args:
        criterion: the losses of the matched queries.
        cass: trains the token scores; None: they are not trained.
        dense: one-to-many supervision of the memory, for training only; None: off.
        balance_encoder, balance_decoder: weights of the load-balance losses.
        distill: weight of what the kept tokens are to learn from the same network run dense; 0:
            training does not run it.
    """

    def __init__(
        self,
        criterion: SetCriterion,
        cass: CassLoss | None = None,
        dense: DenseSupervision | None = None,
        balance_encoder: float = 0.0005,
        balance_decoder: float = 0.01,
        distill: float = 0.0,
    ) -> None:
        super().__init__()
        self.criterion = criterion
        self.cass = cass
        self.dense = dense
        self.balance_encoder = balance_encoder
        self.balance_decoder = balance_decoder
        self.distill = distill

    def distillation(
        self,
        maps: Sequence[FeatureMap],
        teacher: Sequence[FeatureMap],
        totals: StepTotals | None = None,
    ) -> Tensor:
        """Returns the weighted distance, at most 2, of maps from the same maps of a teacher.

        Args:
            maps: of the levels, with features for the sites that they hold.
            teacher: the same levels, dense or with the padding marked.
            totals: of the step; None: these maps are all of it.
        """
        totals = StepTotals() if totals is None else totals
        distances = [_distances(own, theirs) for own, theirs in zip(maps, teacher, strict=True)]
        sums = torch.stack([distance.sum() for distance in distances])
        sites = sums.new_tensor([len(distance) for distance in distances])
        return self.distill * (sums / totals.divisor("distill", sites)).mean()

    def forward(
        self,
        output: DecoderOutput,
        encoder_stats: Sequence[RouterStats],
        token_scores: Sequence[Tensor],
        memory: TokenRows,
        geometry: Geometry,
        targets: PaddedTargets,
        totals: StepTotals,
    ) -> dict[str, Tensor]:
        """Returns the weighted losses by name; each is divided by its totals of the step."""
        losses = self.criterion(
            output.layers, output.encoder, output.query_mask, targets, output.denoising, totals
        )
        if self.cass is None:  # the scorer gets zero gradients: distributed training waits for them
            nothing = sum(0.0 * scores.float().sum() for scores in token_scores)
            losses["loss_vfl"] = losses["loss_vfl"] + nothing
        else:
            losses["loss_cass"] = self._cass(self.cass, token_scores, geometry, targets, totals)
        if encoder_stats:
            balance = _balance(encoder_stats, totals, "balance_encoder")
            losses["loss_balance_encoder"] = self.balance_encoder * balance
        if output.router_stats:
            balance = _balance(output.router_stats, totals, "balance_decoder")
            losses["loss_balance_decoder"] = self.balance_decoder * balance
        if self.dense is not None and self.training:
            losses |= self._dense(self.dense, memory, geometry, targets, totals)
        return losses

    @staticmethod
    def _cass(
        cass: CassLoss,
        token_scores: Sequence[Tensor],
        geometry: Geometry,
        targets: PaddedTargets,
        totals: StepTotals,
    ) -> Tensor:
        """The mean over the levels that decide."""
        levels = range(-len(token_scores), 0)
        valid, extents = geometry.valid_masks(), geometry.extents()
        losses = [
            cass(scores, valid[level], targets, extents[:, level], totals, f"cass_{level}")
            for level, scores in zip(levels, token_scores, strict=True)
        ]
        return torch.stack(losses).mean()

    @staticmethod
    def _dense(
        dense: DenseSupervision,
        memory: TokenRows,
        geometry: Geometry,
        targets: PaddedTargets,
        totals: StepTotals,
    ) -> dict[str, Tensor]:
        cells = take_rows(cell_boxes(memory.sites, geometry), memory.table)
        center, size = cells.split(2, dim=-1)
        anchors = torch.logit(torch.cat([center, 3.0 * size], -1), eps=1e-4)
        features = take_rows(memory.rows, memory.table)
        return dense(features, anchors, center, size, memory.table >= 0, targets, totals)


def _distances(own: FeatureMap, teacher: FeatureMap) -> Tensor:
    """One less the cosine between the features of a site, for each site of ``own``: float32.

    The teacher is the network that learns, and changes with it. Distances that grow with the
    features would let both grow without end.
    """
    dense = teacher.tensor if isinstance(teacher, MaskedMap) else teacher
    assert isinstance(dense, Tensor)
    if isinstance(own, Tensor):
        batch, _, height, width = own.shape
        own = SparseMap.from_dense(own, Support.full(batch, height, width, own.device))
    there = SparseMap.from_dense(dense, own.support).features
    rows = own if isinstance(own, SparseMap) else SparseMap.from_dense(own.tensor, own.support)
    cosine = F.cosine_similarity(rows.features.float(), there.float(), dim=1)
    return 1.0 - cosine


def _balance(stats: Sequence[RouterStats], totals: StepTotals, name: str) -> Tensor:
    """The mean over the layers."""
    own = torch.stack([router_counts(s.experts, s.probs.shape[1]) for s in stats])
    counts = totals.mean(name, own)
    losses = [
        load_balance_loss(s.probs, s.experts, s.probs.shape[1], layer)
        for s, layer in zip(stats, counts, strict=True)
    ]
    return sum(losses[1:], losses[0]) / len(losses)


def make_losses(
    num_classes: int,
    *,
    width: int,
    vfl: float = 1.0,
    bbox: float = 5.0,
    giou: float = 2.0,
    cass: CassLoss | None = None,
    dense_cls: float = 1.0,
    dense_box: float = 2.0,
    balance_encoder: float = 0.0005,
    balance_decoder: float = 0.01,
    distill: float = 0.0,
) -> Losses:
    """Makes all losses from flat settings; dense supervision is off when both its weights are 0.

    Raises:
        ValueError: a weight is negative.
    """
    weights = {"vfl": vfl, "bbox": bbox, "giou": giou}
    others = {
        "dense_cls": dense_cls,
        "dense_box": dense_box,
        "balance_encoder": balance_encoder,
        "balance_decoder": balance_decoder,
        "distill": distill,
    }
    for name, value in {**weights, **others}.items():
        check_number(f"losses.{name}", value, at_least=0)
    dense = None
    if dense_cls or dense_box:
        dense = DenseSupervision(width, num_classes, dense_cls, dense_box)
    criterion = SetCriterion(HungarianMatcher(), weights)
    return Losses(criterion, cass, dense, balance_encoder, balance_decoder, distill)
