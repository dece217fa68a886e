"""Query selection: the most promising rows of the memory become the decoder's queries."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparse_dset.models.decoder.memory import Memory
from sparse_dset.models.layers import MLP, at_least_float32, within_half
from sparse_dset.structures.geometry import Geometry
from sparse_dset.structures.ragged import take_rows


@dataclass(frozen=True)
class Anchors:
    """A base box at every row of the memory.

    Attributes:
        unact: float64 ``[M, 4]``, cxcywh before the sigmoid; +inf where ``valid`` is False.
        valid: bool ``[M, 1]``; False for anchors that touch the image's border.
    """

    unact: Tensor
    valid: Tensor


def make_anchors(sites: Tensor, geometry: Geometry) -> Anchors:
    """Makes RT-DETR's anchors: 5 % of the image at the finest level, doubled with each level.

    Args:
        sites: int64 ``[M, 4]``, columns (batch, level, y, x).
    """
    image, level, y, x = sites.unbind(1)
    height, width = geometry.extents()[image, level].double().unbind(1)
    size = 0.05 * 2.0 ** level.double()
    boxes = torch.stack([(x + 0.5) / width, (y + 0.5) / height, size, size], 1)
    valid = ((boxes > 0.01) & (boxes < 0.99)).all(1, keepdim=True)
    unact = torch.log(boxes / (1.0 - boxes)).masked_fill(~valid, torch.inf)
    return Anchors(unact, valid)


@dataclass(frozen=True)
class Queries:
    """The decoder's input.

    Attributes:
        content: ``[B, Q, C]``.
        boxes_unact: ``[B, Q, 4]``, cxcywh before the sigmoid.
        logits: ``[B, Q, K]``, the scores by which they were chosen.
        mask: bool ``[B, Q]``, False for padding of images with fewer rows than queries.
    """

    content: Tensor
    boxes_unact: Tensor
    logits: Tensor
    mask: Tensor


class ProjectedNorm(nn.Module):
    """A linear layer and a layer norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        nn.init.xavier_uniform_(self.proj.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(within_half(self.proj(x)))


class QuerySelection(nn.Module):
    """Base of the decoder: the heads that score the memory and choose from it.

    Its parameters stand in the decoder itself, under RT-DETR's names.
    """

    def __init__(
        self, width: int, num_classes: int, num_queries: int, lean_heads: bool = False
    ) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.lean_heads = lean_heads
        self.enc_output = ProjectedNorm(width)
        self.enc_score_head = nn.Linear(width, num_classes)
        self.enc_bbox_head = MLP(width, width, width, 4)

    def select_queries(self, memory: Memory, geometry: Geometry) -> Queries:
        """Chooses the ``num_queries`` rows with the highest class score of each image.

        An image with fewer rows gets them all and masked queries up to the batch's fullest image.
        """
        anchors = make_anchors(memory.sites, geometry)
        rows = self.enc_output(memory.rows * anchors.valid)
        logits = at_least_float32(self.enc_score_head(rows))

        exists = memory.table >= 0
        best = take_rows(logits.detach().amax(-1), memory.table).masked_fill(~exists, -torch.inf)
        fullest = max(int(exists.sum(1).max()), 1)
        chosen = best.topk(min(self.num_queries, fullest), dim=1).indices
        mask = exists.gather(1, chosen)
        index = memory.table.gather(1, chosen)
        content = take_rows(rows, index)
        if self.training or self.lean_heads:
            boxes = self.enc_bbox_head(content)
        else:
            boxes = take_rows(self.enc_bbox_head(rows), index)
        boxes = at_least_float32(boxes)
        boxes = boxes + take_rows(anchors.unact, index).to(boxes.dtype)
        hidden = ~mask.unsqueeze(-1)
        return Queries(
            content.masked_fill(hidden, 0.0),
            boxes.masked_fill(hidden, 0.0),
            take_rows(logits, index),
            mask,
        )
