"""How many images an audit needs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparse_dset.benchmark.validation import sample_images
from sparse_dset.data.coco import CocoDetection
from sparse_dset.models.detector import Detector
from sparse_dset.models.pruner import ByContent


@torch.inference_mode()
def enough_images(
    model: Detector,
    dataset: CocoDetection,
    keep_ratios: Sequence[float],
    *,
    batch_size: int,
    tolerance: float,
    at_most: int,
) -> Tensor:
    """Returns as many images as it takes until what is kept is on average what is asked.

    They are spread evenly over the data set. Where every image keeps the same share of its tokens
    it is one batch; where a keep ratio is an average over images, the number is doubled until the
    mean share is close to every keep ratio.

    Args:
        model: in evaluation.
        dataset: where they come from.
        keep_ratios: that are asked for.
        batch_size: how many images run together: the least number.
        tolerance: the difference between the mean share kept and the keep ratio that is accepted.
        at_most: images; also at most those of the data set.

    Returns:
        ``[N, 3, H, W]`` in [0, 1].
    """
    device = next(model.parameters()).device
    limit = max(min(at_most, len(dataset)), batch_size)
    images = sample_images(dataset, batch_size).to(device)
    while isinstance(model.pruner.selector, ByContent) and len(images) < limit:
        shares = [_mean_share(model, images, ratio, batch_size) for ratio in keep_ratios]
        if all(abs(a - b) <= tolerance for a, b in zip(shares, keep_ratios, strict=True)):
            break
        images = sample_images(dataset, min(2 * len(images), limit)).to(device)
    return images


def _mean_share(model: Detector, images: Tensor, keep_ratio: float, batch_size: int) -> float:
    outputs = [
        model(batch, execution="sparse", keep_ratio=keep_ratio)
        for batch in images.split(batch_size)
    ]
    kept, tokens = (
        torch.cat([getattr(out, name).sum(1) for out in outputs])
        for name in ("num_kept", "num_tokens")
    )
    return float((kept / tokens).mean())
