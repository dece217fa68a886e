"""Joining images of different sizes to one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from sparse_dset.data.coco import Target
from sparse_dset.structures.geometry import pad_images


@dataclass(frozen=True)
class Batch:
    """B images and what is known about them.

    Attributes:
        images: float32 ``[B, 3, H, W]`` in [0, 1]; padding is at the right and the bottom, zero.
        padding_mask: bool ``[B, H, W]``, True = pad; None where no image is padded.
        targets: one per image. Boxes are relative to the unpadded size, so padding moves none.
    """

    images: Tensor
    padding_mask: Tensor | None
    targets: list[Target]

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> Batch:
        """Returns the batch on another device."""
        mask = self.padding_mask
        return Batch(
            images=self.images.to(device, non_blocking=True),
            padding_mask=None if mask is None else mask.to(device, non_blocking=True),
            targets=[_target_to(target, device) for target in self.targets],
        )


def collate(samples: Sequence[tuple[Tensor, Target]], size_divisor: int = 32) -> Batch:
    """Joins samples; smaller images are padded at the right and the bottom.

    Args:
        samples: images ``[3, h, w]`` of any sizes with their targets.
        size_divisor: H and W of the batch are the smallest multiples of it that hold every image.

    Raises:
        ValueError: no samples.
    """
    if not samples:
        raise ValueError("a batch needs at least one sample")
    images, padding_mask = pad_images([image for image, _ in samples], size_divisor)
    return Batch(images, padding_mask, [target for _, target in samples])


def _target_to(target: Target, device: torch.device | str) -> Target:
    moved = {
        key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for key, value in target.items()
    }
    return cast(Target, moved)
