"""Heads that predict classes and boxes from every token, in training only."""

from __future__ import annotations

import math

import torch
from torch import nn

from sparse_dset.structures.geometry import Geometry, cell_boxes
from sparse_dset.structures.outputs import DensePredictions, TokenRows
from sparse_dset.structures.ragged import take_rows

_PRIOR = 0.01

_CELLS_OF_A_BOX = 3.0


class DenseHead(nn.Module):
    """Predicts classes and boxes from every token, with heads of its own that inference drops.

    It starts at a probability of 0.01 for every class, and with boxes of three cells.

    Args:
        width: C of the token features.
        num_classes: K.
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.class_head = _head(width, num_classes)
        self.box_head = _head(width, 4)
        for head, bias in (
            (self.class_head, math.log(_PRIOR / (1 - _PRIOR))),
            (self.box_head, 0.0),
        ):
            last = head[-1]
            assert isinstance(last, nn.Linear)
            nn.init.zeros_(last.weight)
            nn.init.constant_(last.bias, bias)

    def forward(self, memory: TokenRows, geometry: Geometry) -> DensePredictions:
        """Predicts from the rows of all levels."""
        cells = take_rows(cell_boxes(memory.sites, geometry), memory.table)
        centers, sizes = cells.split(2, dim=-1)
        anchors = torch.logit(torch.cat([centers, _CELLS_OF_A_BOX * sizes], -1), eps=1e-4)
        features = take_rows(memory.rows, memory.table)
        return DensePredictions(
            logits=self.class_head(features).float(),
            boxes=(self.box_head(features).float() + anchors.float()).sigmoid(),
            centers=centers,
            cell_sizes=sizes,
            mask=memory.table >= 0,
        )


def _head(width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, width), nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, outputs)
    )
