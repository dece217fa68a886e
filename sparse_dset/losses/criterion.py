"""All losses of the detector in one place, outside of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sparse_dset.checks import check_number
from sparse_dset.losses.balance import load_balance_loss, router_counts
from sparse_dset.losses.cass import CassLoss
from sparse_dset.losses.dense import DenseSupervision
from sparse_dset.losses.distill import distillation_loss
from sparse_dset.losses.matched import SetCriterion
from sparse_dset.losses.matcher import HungarianMatcher
from sparse_dset.losses.totals import StepTotals
from sparse_dset.structures.geometry import Geometry
from sparse_dset.structures.maps import FeatureMap
from sparse_dset.structures.outputs import DetectorOutput, RouterStats
from sparse_dset.structures.targets import PaddedTargets, pad_targets


class Criterion:
    """Detection, token supervision, load balance, dense supervision, and distillation.

    Args:
        matched: the losses of the matched queries.
        cass: trains the token scores; None: they are not trained.
        dense: one-to-many supervision of every token, where the network predicts from them; None:
            off.
        balance_encoder, balance_decoder: weights of the load-balance losses.
        distill: weight of what the kept tokens are to learn from the same network run dense; 0:
            no teacher is needed.
    """

    def __init__(
        self,
        matched: SetCriterion,
        cass: CassLoss | None = None,
        dense: DenseSupervision | None = None,
        balance_encoder: float = 0.0005,
        balance_decoder: float = 0.01,
        distill: float = 0.0,
    ) -> None:
        self.matched = matched
        self.cass = cass
        self.dense = dense
        self.balance_encoder = balance_encoder
        self.balance_decoder = balance_decoder
        self.distill = distill

    def __call__(
        self,
        output: DetectorOutput,
        targets: Sequence[Mapping[str, Any]],
        totals: StepTotals | None = None,
        teacher: Sequence[FeatureMap] | None = None,
    ) -> dict[str, Tensor]:
        """Returns the weighted losses by name, float32 scalars; their sum is to be minimised.

        Args:
            output: of a forward pass that was given the same targets.
            targets: see ``Detector.forward``.
            totals: what each loss is divided by, and where it notes what it has counted; None:
                this forward pass is all of its step.
            teacher: the maps that those of ``output.supervised`` are to resemble; None: they
                learn from nobody.

        Raises:
            ValueError: the forward pass was given no targets.
        """
        out = output.supervised
        if out is None:
            raise ValueError(
                "the output holds nothing to learn from: give the targets to the forward pass too"
            )
        totals = StepTotals() if totals is None else totals
        logits = output.pred_logits
        padded = pad_targets(targets, logits.shape[-1], logits.device)
        decoder = out.decoder
        losses = self.matched(
            decoder.layers, decoder.encoder, decoder.query_mask, padded, decoder.denoising, totals
        )
        if self.cass is None:  # the scorer gets zero gradients: distributed training waits for them
            nothing = sum(0.0 * scores.float().sum() for scores in out.token_scores)
            losses["loss_vfl"] = losses["loss_vfl"] + nothing
        else:
            losses["loss_cass"] = _cass(self.cass, out.token_scores, out.geometry, padded, totals)
        if out.router_stats:
            balance = _balance(out.router_stats, totals, "balance_encoder")
            losses["loss_balance_encoder"] = self.balance_encoder * balance
        if decoder.router_stats:
            balance = _balance(decoder.router_stats, totals, "balance_decoder")
            losses["loss_balance_decoder"] = self.balance_decoder * balance
        if self.dense is not None and out.dense is not None:
            losses |= self.dense(out.dense, padded, totals)
        if teacher is not None:
            losses["loss_distill"] = self.distill * distillation_loss(out.maps, teacher, totals)
        return losses


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


def _balance(stats: Sequence[RouterStats], totals: StepTotals, name: str) -> Tensor:
    """The mean over the layers."""
    own = torch.stack([router_counts(s.experts, s.probs.shape[1]) for s in stats])
    counts = totals.mean(name, own)
    losses = [
        load_balance_loss(s.probs, s.experts, s.probs.shape[1], layer)
        for s, layer in zip(stats, counts, strict=True)
    ]
    return sum(losses[1:], losses[0]) / len(losses)


def make_criterion(
    *,
    vfl: float = 1.0,
    bbox: float = 5.0,
    giou: float = 2.0,
    cass: CassLoss | None = None,
    dense_cls: float = 1.0,
    dense_box: float = 2.0,
    balance_encoder: float = 0.0005,
    balance_decoder: float = 0.01,
    distill: float = 0.0,
) -> Criterion:
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
    dense = DenseSupervision(dense_cls, dense_box) if dense_cls or dense_box else None
    matched = SetCriterion(HungarianMatcher(), weights)
    return Criterion(matched, cass, dense, balance_encoder, balance_decoder, distill)
