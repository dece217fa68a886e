"""Image sizes of a batch, and what they mean on each feature level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

STRIDES = (8, 16, 32)
"""Pixels per cell of each level, finest first."""


@dataclass(frozen=True)
class Geometry:
    """Where each image of a padded batch ends.

    Attributes:
        image_sizes: ``[B, 2]`` float32, (height, width) in pixels without padding.
        padded_size: (height, width) of the batch in pixels, multiples of 32.
        padded: whether any image is smaller than the batch.
    """

    image_sizes: Tensor
    padded_size: tuple[int, int]
    padded: bool

    def extents(self) -> Tensor:
        """Returns each image's size in cells: float32 ``[B, L, 2]`` (height, width)."""
        strides = self.image_sizes.new_tensor(STRIDES)
        return self.image_sizes[:, None, :].clamp(min=1.0) / strides[None, :, None]

    def cells(self) -> Tensor:
        """Returns how many cells each image touches: int64 ``[B, L, 2]`` (height, width)."""
        return self.extents().ceil().long()

    def valid_masks(self) -> list[Tensor]:
        """Returns the cells that hold at least one pixel: bool ``[B, H_l, W_l]`` per level."""
        return [self.valid_mask(stride) for stride in STRIDES]

    def valid_mask(self, stride: int) -> Tensor:
        """Returns the cells of a stride that hold at least one pixel: bool ``[B, H, W]``."""
        height, width = self.padded_size
        return _top_left((self.image_sizes / stride).ceil(), height // stride, width // stride)

    def pixel_mask(self) -> Tensor:
        """Returns the pixels that are not padding: bool ``[B, H, W]``."""
        return _top_left(self.image_sizes, *self.padded_size)


def _top_left(sizes: Tensor, height: int, width: int) -> Tensor:
    rows = torch.arange(height, device=sizes.device)
    columns = torch.arange(width, device=sizes.device)
    return (rows < sizes[:, :1])[:, :, None] & (columns < sizes[:, 1:])[:, None, :]


def pad_images(images: Sequence[Tensor], size_divisor: int = 32) -> tuple[Tensor, Tensor | None]:
    """Joins images of different sizes; smaller ones are padded at the right and the bottom.

    Args:
        images: ``[3, h, w]``, at least one.
        size_divisor: H and W of the batch are the smallest multiples of it that hold every image.

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


def pad_batch(images: Tensor, padding_mask: Tensor | None) -> tuple[Tensor, Geometry]:
    """Pads a batch on the right and bottom to multiples of 32 and finds the images in it.

    Args:
        images: ``[B, 3, H, W]``.
        padding_mask: bool ``[B, H, W]``, True = padding, or None.

    Returns:
        The images with zeros in the padding, and where each image ends.

    Raises:
        ValueError: shapes that do not fit, or padding elsewhere than on the right and bottom.
    """
    if images.dim() != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be [B, 3, H, W], got {tuple(images.shape)}")
    if not images.numel():
        raise ValueError(
            f"images must hold at least one image of at least 1x1 pixels, got {tuple(images.shape)}"
        )
    if not images.is_floating_point():
        raise ValueError(f"images must be floating point in [0, 1], got {images.dtype}")
    batch, _, height, width = images.shape
    if padding_mask is None:
        sizes = torch.tensor([[height, width]], device=images.device).expand(batch, 2).float()
    else:
        if padding_mask.shape != (batch, height, width) or padding_mask.dtype != torch.bool:
            raise ValueError(
                f"padding_mask must be bool {(batch, height, width)} (True = padding), got "
                f"{padding_mask.dtype} {tuple(padding_mask.shape)}"
            )
        filled = ~padding_mask
        sizes = torch.stack([filled.any(2).sum(1), filled.any(1).sum(1)], dim=1).float()
        bad = (_top_left(sizes, height, width) != filled).flatten(1).any(1).nonzero()
        if len(bad):
            raise ValueError(
                f"padding_mask of image {int(bad[0])} of the batch is not a border on the right "
                "and bottom; other padding is not supported"
            )
    bottom, right = -height % STRIDES[-1], -width % STRIDES[-1]
    if bottom or right:
        images = F.pad(images, (0, right, 0, bottom))
    size = (height + bottom, width + right)
    smaller = padding_mask is not None and bool(padding_mask.any())
    geometry = Geometry(sizes, size, bool(bottom or right or smaller))
    if smaller:
        images = images.masked_fill(~geometry.pixel_mask().unsqueeze(1), 0.0)
    return images, geometry


def cell_boxes(sites: Tensor, geometry: Geometry) -> Tensor:
    """Returns each row's cell as a box ``[M, 4]``, cxcywh relative to its image."""
    image, level, y, x = sites.unbind(1)
    height, width = geometry.extents()[image, level].unbind(1)
    return torch.stack([(x + 0.5) / width, (y + 0.5) / height, 1.0 / width, 1.0 / height], 1)
