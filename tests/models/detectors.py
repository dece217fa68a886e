"""Small detectors with spread-out weights, what they are fed with, and how they are compared."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparse_dset import build_detector
from sparse_dset.models.detector import Detector
from sparse_dset.structures.outputs import DetectorOutput


def _norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]


@torch.no_grad()
def _spread(model: Detector) -> None:
    """Gives every norm real statistics and moves every parameter away from 0 and 1."""
    for norm in _norms(model):
        norm.momentum = None
    model.double().train()
    model(torch.rand(2, 3, 96, 160, dtype=torch.float64), execution="dense")
    for norm in _norms(model):
        norm.momentum = 0.1
        norm.running_mean += 0.2 * norm.running_var.sqrt() * torch.randn_like(norm.running_mean)
        norm.running_var *= 0.7 + 0.6 * torch.rand_like(norm.running_var)
    for parameter in model.parameters():
        parameter += 0.03 * torch.randn_like(parameter)


@functools.cache
def _built(name: str, overrides: tuple[str, ...]) -> Detector:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = build_detector(name, 3, overrides, pretrained=False)
        _spread(model)
    return model.eval()


def make_detector(
    name: str = "nano", *overrides: str, dtype: torch.dtype = torch.float64
) -> Detector:
    """A fresh copy in evaluation."""
    return copy.deepcopy(_built(name, overrides)).to(dtype)


def make_targets(*counts: int) -> list[dict[str, Any]]:
    """As many random objects per image."""
    return [
        {
            "labels": torch.randint(3, (count,)),
            "boxes": torch.cat(
                [0.2 + 0.6 * torch.rand(count, 2), 0.1 + 0.3 * torch.rand(count, 2)], 1
            ),
            "image_id": i,
        }
        for i, count in enumerate(counts)
    ]


def _children(mask: Tensor) -> Tensor:
    return mask.repeat_interleave(2, 1).repeat_interleave(2, 2)


def nested_masks(size: tuple[int, int], images: Sequence[float | str]) -> list[Tensor]:
    """Random nested masks of a coarsest grid ``size``, finest level first.

    Each image gives the share of coarsest cells, or "one" for a single token at that level.
    """
    coarse = torch.zeros(len(images), *size, dtype=torch.bool)
    inherits = torch.ones(len(images), 1, 1, dtype=torch.bool)
    for i, share in enumerate(images):
        if share == "one":
            coarse[i, size[0] // 2, size[1] - 1] = True
            inherits[i] = False
        else:
            coarse[i] = torch.rand(size) < share
    middle = _children(coarse)
    middle = middle & (torch.rand(middle.shape) < 0.7) & inherits
    fine = _children(middle)
    return [fine & (torch.rand(fine.shape) < 0.7), middle, coarse]


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in model.named_parameters()
    }


def assert_same_gradients(model: nn.Module, other: nn.Module) -> None:
    """Compares the gradients of all parameters by name; no gradient counts as zero."""
    ours, theirs = gradients(model), gradients(other)
    assert any(bool(g.any()) for g in ours.values())
    # The losses are computed in float32, whatever the model's type.
    for name, value in ours.items():
        scale = max(1.0, float(value.abs().max()))
        torch.testing.assert_close(
            theirs[name],
            value,
            rtol=0,
            atol=2e-5 * scale,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def assert_same_outputs(out: DetectorOutput, other: DetectorOutput, atol: float = 1e-6) -> None:
    """Compares predictions, losses and kept tokens of two outputs."""
    assert torch.equal(out.query_mask, other.query_mask)
    torch.testing.assert_close(out.pred_logits, other.pred_logits, rtol=0, atol=atol)
    torch.testing.assert_close(out.pred_boxes, other.pred_boxes, rtol=0, atol=atol)
    losses, other_losses = (getattr(one, "losses", {}) for one in (out, other))
    assert losses.keys() == other_losses.keys()
    for name, value in losses.items():
        torch.testing.assert_close(other_losses[name], value, rtol=1e-5, atol=1e-5)
    for kept, other_kept in zip(out.kept, other.kept, strict=True):
        assert torch.equal(kept, other_kept)
