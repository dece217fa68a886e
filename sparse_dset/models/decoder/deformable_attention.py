"""Multi-scale deformable attention of RT-DETRv2, whose values are projected where rows exist.

Zhu et al., "Deformable DETR", 2021; Lv et al., "RT-DETRv2", 2024.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sparse_dset.models.decoder.memory import Memory
from sparse_dset.models.layers import at_least_float32, within_half


class MSDeformableAttention(nn.Module):
    """Attends to a few sampled places around each query's box.

    Args:
        width, num_heads: of queries and values.
        num_levels, num_points: levels, and samples per level and head.
        offset_scale: an offset of 1 moves a sample by this share of the box.

    Attributes:
        lean: in evaluation, project values before or after they are sampled, whichever costs less.
    """

    num_points_scale: Tensor
    lean: bool = False

    def __init__(
        self,
        width: int,
        num_heads: int,
        num_levels: int,
        num_points: int,
        offset_scale: float = 0.5,
    ) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width {width} is not a multiple of num_heads {num_heads}")
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        self.offset_scale = offset_scale
        samples = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(width, samples * 2)
        self.attention_weights = nn.Linear(width, samples)
        self.value_proj = nn.Linear(width, width)
        self.output_proj = nn.Linear(width, width)
        self.register_buffer(
            "num_points_scale", torch.full((num_levels * num_points,), 1.0 / num_points)
        )
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        """Spreads the samples of head h along direction h, farther with each point."""
        angle = torch.arange(self.num_heads) * (2.0 * math.pi / self.num_heads)
        direction = torch.stack([angle.cos(), angle.sin()], -1)
        direction = direction / direction.abs().max(-1, keepdim=True).values
        reach = torch.arange(1, self.num_points + 1).repeat(self.num_levels)
        offsets = direction[:, None, :] * reach[None, :, None]
        with torch.no_grad():
            self.sampling_offsets.weight.zero_()
            self.sampling_offsets.bias.copy_(offsets.flatten())
            self.attention_weights.weight.zero_()
            self.attention_weights.bias.zero_()
            for projection in (self.value_proj, self.output_proj):
                nn.init.xavier_uniform_(projection.weight)
                projection.bias.zero_()

    def forward(
        self,
        query: Tensor,
        boxes: Tensor,
        memory: Memory,
        background: Tensor | None,
        extents: Tensor,
    ) -> Tensor:
        """Attends.

        Args:
            query: ``[B, Q, C]``.
            boxes: ``[B, Q, 4]``, cxcywh in [0, 1] of the image.
            memory: what is attended to.
            background: ``[L, C]``, the features of pruned sites; None: zero.
            extents: ``[B, L, 2]``, each image's (height, width) in cells.
        """
        batch, length, _ = query.shape
        grid = (batch, length, self.num_heads, self.num_levels, self.num_points)
        offsets = at_least_float32(self.sampling_offsets(query)).view(*grid, 2)
        scale = self.num_points_scale.view(self.num_levels, self.num_points, 1)
        center, size = boxes[:, :, None, None, None, :].split(2, dim=-1)
        locations = center + offsets * scale * size * self.offset_scale
        weights = at_least_float32(self.attention_weights(query))
        weights = weights.view(batch, length, self.num_heads, -1).softmax(-1).view(grid)

        if self.lean:
            sampled = memory.project_and_sample(
                self.value_proj, background, locations, weights, extents
            )
            return self.output_proj(sampled)
        value = within_half(self.value_proj(memory.rows))
        if background is None:
            empty = self.value_proj.bias.expand(self.num_levels, -1).to(value.dtype)
        else:
            empty = within_half(self.value_proj(background))
        sampled = memory.sample(value, empty, locations, weights, extents)
        return self.output_proj(sampled)
