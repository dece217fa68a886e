"""Joining images of different sizes to one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_dset.data.coco import Target


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


def pad_images(images: Sequence[Tensor], size_divisor: int = 32) -> tuple[Tensor, Tensor | None]:
    """Joins images ``[3, h, w]`` of any sizes as ``collate`` does.

    Returns:
        ``[B, 3, H, W]`` and bool ``[B, H, W]``, True = padding; None where no image is padded.
    """
    sizes = torch.tensor([image.shape[-2:] for image in images])
    height, width = _round_up(sizes.amax(dim=0), size_divisor)
    padded = [
        F.pad(image, (0, width - image.shape[-1], 0, height - image.shape[-2])) for image in images
    ]
    return torch.stack(padded), _mask_of(sizes, height, width)


def _round_up(size: Tensor, divisor: int) -> tuple[int, int]:
    if divisor < 1:
        raise ValueError(f"the divisor must be at least 1, got {divisor}")
    height, width = ((size + divisor - 1) // divisor * divisor).tolist()
    return height, width


def _mask_of(sizes: Tensor, height: int, width: int) -> Tensor | None:
    heights, widths = sizes[:, 0, None, None], sizes[:, 1, None, None]
    mask = (torch.arange(height)[:, None] >= heights) | (torch.arange(width) >= widths)
    return mask if mask.any() else None


def _target_to(target: Target, device: torch.device | str) -> Target:
    moved = {
        key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for key, value in target.items()
    }
    return cast(Target, moved)
