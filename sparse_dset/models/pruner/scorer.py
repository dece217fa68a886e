"""Scores each stride-32 cell: how likely is it to matter for detection?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_dset.models.geometry import STRIDES


def level_index(name: str) -> int:
    """Returns the position of a level name ("s3", "s4", "s5"), finest first."""
    names = ("s3", "s4", "s5")
    if name not in names:
        raise ValueError(f"levels are called {', '.join(names)}; got {name!r}")
    return names.index(name)


class TokenScorer(nn.Module):
    """An MLP over what the chosen levels show of each cell (mean and maximum of the cell).

    Args:
        in_channels: channels of the backbone's levels, finest first.
        levels: which of them to look at ("s3", "s4", "s5"); DSET looks at s5 only, where small
            objects are hardest to see.
        hidden: width of the hidden layer.
    """

    def __init__(self, in_channels: Sequence[int], levels: Sequence[str], hidden: int) -> None:
        super().__init__()
        self.levels = sorted(level_index(name) for name in levels)
        if not self.levels:
            raise ValueError("pruner.levels is empty: name at least one of s3, s4, s5")
        width = 2 * sum(in_channels[i] for i in self.levels)
        self.norm = nn.LayerNorm(width)
        last = nn.Linear(hidden, 1)
        nn.init.constant_(last.bias, -2.0)  # most cells are empty
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), last)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Returns token scores (logits) ``[B, H, W]`` of the stride-32 cells.

        Args:
            features: backbone maps ``[B, C_l, H_l, W_l]``, finest first, zero in the padding.
        """
        seen = []
        for i in self.levels:
            size = STRIDES[-1] // STRIDES[i]
            seen += [F.avg_pool2d(features[i], size), F.max_pool2d(features[i], size)]
        cells = torch.cat(seen, dim=1).permute(0, 2, 3, 1)
        return self.mlp(self.norm(cells)).squeeze(-1)
