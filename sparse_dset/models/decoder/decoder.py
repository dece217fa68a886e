"""RT-DETRv2's decoder over a memory of any kind."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_dset.checks import check_number
from sparse_dset.models.attention import SelfAttention
from sparse_dset.models.decoder.deformable_attention import MSDeformableAttention
from sparse_dset.models.decoder.denoising import make_denoising_queries
from sparse_dset.models.decoder.memory import Memory, read_maps
from sparse_dset.models.decoder.queries import QuerySelection
from sparse_dset.models.layers import MLP, MOST_LAYERS, ConvNormLayer, Fusable, at_least_float32
from sparse_dset.models.moe import FeedForward, MoEConfig
from sparse_dset.ops.segment import widened
from sparse_dset.structures.geometry import Geometry
from sparse_dset.structures.maps import FeatureMap
from sparse_dset.structures.outputs import (
    DecoderOutput,
    DenoisingPredictions,
    DenoisingQueries,
    Predictions,
    RouterStats,
)
from sparse_dset.structures.targets import PaddedTargets

NO_QUERY_LOGIT = -100.0
"""The class logits of masked queries: their probability is 0 in float32."""


class DecoderLayer(FeedForward):
    """Self-attention, deformable cross-attention and a feed-forward part, post-norm."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        hidden: int,
        num_levels: int,
        num_points: int,
        moe: MoEConfig | None,
    ) -> None:
        super().__init__(width, hidden, F.relu, moe)
        self.self_attn = SelfAttention(width, num_heads)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attn = MSDeformableAttention(width, num_heads, num_levels, num_points)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)

    def forward(
        self,
        target: Tensor,
        position: Tensor,
        boxes: Tensor,
        memory: Memory,
        background: Tensor | None,
        extents: Tensor,
        may_attend: Tensor | None,
        query_mask: Tensor | None,
    ) -> tuple[Tensor, RouterStats | None]:
        """Refines queries ``[B, Q, C]``; see ``MSDeformableAttention`` for the other arguments."""
        target = self.norm1(target + self.self_attn(target, position, may_attend))
        attended = self.cross_attn(target + position, boxes, memory, background, extents)
        target = self.norm2(target + attended)
        y, stats = self.feed_forward(target, query_mask)
        return self.norm3(target + y), stats


class Layers(nn.Module):
    """The list of layers, one step deeper, as in RT-DETR's parameter names."""

    def __init__(self, layers: Sequence[DecoderLayer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


class Decoder(QuerySelection, Fusable):
    """Query selection, decoder layers and heads.

    Args:
        num_classes: K.
        in_channels: channels of the neck's levels.
        width, num_heads, ffn_dim, num_layers, num_points: the usual sizes.
        num_levels: number of levels.
        num_queries: queries per image; fewer where an image has fewer tokens.
        num_denoising, label_noise_ratio, box_noise_scale: see ``make_denoising_queries``.
        background: what samples read at pruned sites: "zero" (as in a zero-filled map) or
            "learned" (a feature vector per level).
        moe: experts of the feed-forward parts, None for dense ones.
        lean_heads: in evaluation, run the first box head on the selected queries instead of every
            token, and class heads after the last layer only. The outputs are the same; False costs
            what RT-DETRv2 costs as published.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        width: int = 256,
        num_heads: int = 8,
        ffn_dim: int = 1024,
        num_layers: int = 6,
        num_points: int = 4,
        num_levels: int = 3,
        num_queries: int = 300,
        num_denoising: int = 100,
        label_noise_ratio: float = 0.5,
        box_noise_scale: float = 1.0,
        background: str = "zero",
        moe: MoEConfig | None = None,
        lean_heads: bool = False,
    ) -> None:
        super().__init__(width, num_classes, num_queries, lean_heads)
        numbers = {
            "num_queries": (num_queries, 1, None),
            "num_layers": (num_layers, 1, MOST_LAYERS),
            "num_points": (num_points, 1, None),
            "num_denoising": (num_denoising, 0, None),
        }
        for name, (value, least, most) in numbers.items():
            name = f"model.decoder.{name}"
            check_number(name, value, at_least=least, at_most=most, whole=True)
        check_number("model.decoder.label_noise_ratio", label_noise_ratio, at_least=0, at_most=1)
        check_number("model.decoder.box_noise_scale", box_noise_scale, at_least=0)
        if background not in ("zero", "learned"):
            raise ValueError(f'decoder background must be "zero" or "learned", got {background!r}')
        self.width = width
        self.num_classes = num_classes
        self.num_denoising = num_denoising
        self.label_noise_ratio = label_noise_ratio
        self.box_noise_scale = box_noise_scale
        self.input_proj = nn.ModuleList(
            ConvNormLayer(in_channels, width, 1) for _ in range(num_levels)
        )
        self.decoder = Layers(
            [
                DecoderLayer(width, num_heads, ffn_dim, num_levels, num_points, moe)
                for _ in range(num_layers)
            ]
        )
        self.denoising_class_embed = nn.Embedding(num_classes + 1, width, padding_idx=num_classes)
        self.query_pos_head = MLP(4, 2 * width, width)
        self.dec_score_head = nn.ModuleList(
            nn.Linear(width, num_classes) for _ in range(num_layers)
        )
        self.dec_bbox_head = nn.ModuleList(MLP(width, width, width, 4) for _ in range(num_layers))
        self.background = (
            nn.Parameter(torch.zeros(num_levels, width)) if background == "learned" else None
        )
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        prior = -math.log((1 - 0.01) / 0.01)
        for head in (self.enc_score_head, *self.dec_score_head):
            nn.init.constant_(head.bias, prior)
        for head in (self.enc_bbox_head, *self.dec_bbox_head):
            nn.init.zeros_(head.layers[-1].weight)
            nn.init.zeros_(head.layers[-1].bias)
        for name, parameter in self.query_pos_head.named_parameters():
            if name.endswith("weight"):
                nn.init.xavier_uniform_(parameter)
        nn.init.normal_(self.denoising_class_embed.weight[:-1])

    def fused(self) -> Decoder:
        """Leaves out what does not change the outputs."""
        self.lean_heads = True
        for layer in self.decoder.layers:
            layer.cross_attn.lean = True  # type: ignore[union-attr, operator]
        return self

    def read(self, maps: Sequence[FeatureMap]) -> Memory:
        """Projects the neck's maps and collects them."""
        projected = [proj(x) for proj, x in zip(self.input_proj, maps, strict=True)]
        return read_maps(projected, self.background)

    def forward(
        self, memory: Memory, geometry: Geometry, targets: PaddedTargets | None = None
    ) -> DecoderOutput:
        """Predicts boxes.

        Args:
            memory: what ``read`` returned.
            geometry: where each image ends.
            targets: in training, the objects that denoising queries are made of.
        """
        queries = self.select_queries(memory, geometry)
        noise = None
        if self.training and targets is not None:
            noise = make_denoising_queries(
                targets,
                queries.mask.shape[1],
                self.num_classes,
                self.num_denoising,
                self.label_noise_ratio,
                self.box_noise_scale,
            )
        target, boxes_unact, mask = (
            queries.content.detach(),
            queries.boxes_unact.detach(),
            queries.mask,
        )
        if self.training:
            target = target + self._zero()
        if noise is not None:
            table = self.denoising_class_embed
            # All objects of a class add up in one row.
            classes = F.embedding(noise.labels, widened(table.weight), table.padding_idx)
            target = torch.cat([classes.to(table.weight.dtype), target], 1)
            boxes_unact = torch.cat([noise.boxes_unact.to(boxes_unact), boxes_unact], 1)
            mask = torch.cat([noise.query_mask, mask], 1)

        layers, stats = self._refine(target, boxes_unact, mask, memory, geometry, noise)
        start = 0 if noise is None else noise.labels.shape[1]
        denoising = None
        if noise is not None:
            denoising = DenoisingPredictions(
                tuple(Predictions(p.logits[:, :start], p.boxes[:, :start]) for p in layers), noise
            )
        return DecoderOutput(
            layers=tuple(Predictions(p.logits[:, start:], p.boxes[:, start:]) for p in layers),
            encoder=Predictions(queries.logits, queries.boxes_unact.sigmoid()),
            query_mask=queries.mask,
            denoising=denoising,
            router_stats=tuple(stats),
        )

    def _zero(self) -> Tensor:
        """A zero with the gradient of what a batch may leave unused: distributed training waits."""
        idle = self.denoising_class_embed.weight.sum()
        return 0.0 * (idle if self.background is None else idle + self.background.sum())

    def _refine(
        self,
        target: Tensor,
        boxes_unact: Tensor,
        mask: Tensor,
        memory: Memory,
        geometry: Geometry,
        noise: DenoisingQueries | None,
    ) -> tuple[list[Predictions], list[RouterStats]]:
        """Runs the layers; each one refines the boxes of the one before, without its gradient."""
        query_mask = None if bool(mask.all()) else mask
        may_attend = _may_attend(query_mask, None if noise is None else noise.attn_mask)
        extents = geometry.extents()
        predictions, stats = [], []
        boxes = boxes_unact.sigmoid()
        connected = boxes  # keeps the gradient of the layer before, for the loss of this one
        last = len(self.decoder.layers) - 1
        for i, layer in enumerate(self.decoder.layers):
            target, router = layer(
                target,
                self.query_pos_head(boxes.to(target.dtype)),
                boxes,
                memory,
                self.background,
                extents,
                may_attend,
                query_mask,
            )
            stats += [router] if router is not None else []
            delta = at_least_float32(self.dec_bbox_head[i](target))
            if i == last or self.training or not self.lean_heads:
                logits = at_least_float32(self.dec_score_head[i](target))
                logits = logits.masked_fill(~mask.unsqueeze(-1), NO_QUERY_LOGIT)
                refined = torch.sigmoid(delta + torch.logit(connected, eps=1e-5))
                predictions.append(Predictions(logits, refined))
            connected = torch.sigmoid(delta + torch.logit(boxes, eps=1e-5))
            boxes = connected.detach()
        return predictions, stats


def _may_attend(query_mask: Tensor | None, denoising_mask: Tensor | None) -> Tensor | None:
    """Joins both masks: bool ``[1 or B, Q, Q]``, True = may attend; every query sees itself."""
    allowed = None
    if query_mask is not None:
        itself = torch.eye(query_mask.shape[1], dtype=torch.bool, device=query_mask.device)
        allowed = query_mask.unsqueeze(1) | itself
    if denoising_mask is not None:
        visible = ~denoising_mask.unsqueeze(0)
        allowed = visible if allowed is None else allowed & visible
    return allowed
