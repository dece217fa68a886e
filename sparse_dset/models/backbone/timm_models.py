"""Makes models of timm and finds out what they take and return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn

from sparse_dset.models.evaluation_mode import evaluation
from sparse_dset.structures.geometry import STRIDES

_STRIDES = (4, *STRIDES)
_SMALL_SIZE = (64, 96)
_FAILURES = (AssertionError, RuntimeError, IndexError, TypeError)
"""What timm's models raise at sizes, and timm at names and keywords, that they do not take."""


@dataclass(frozen=True)
class Form:
    """What a model takes and returns.

    Attributes:
        image_size: (height, width) of images that it surely takes.
        channels_last: whether its maps are ``[B, H, W, C]``.
        contiguous: whether images must not be laid out channels-last, see
            ``_needs_contiguous_images``.
    """

    image_size: tuple[int, int]
    channels_last: bool
    contiguous: bool


def make_stages(name: str, pretrained: bool, options: Mapping[str, Any]) -> tuple[nn.Module, Form]:
    """Makes a model that returns its last maps at strides 4, 8, 16 and 32.

    A model of a single image size that can be made for any is made so, unless the options say
    otherwise.

    Raises:
        ValueError: timm has no such model or it takes no such keyword, or its maps are not at
            these strides.
    """
    indices = _stage_indices(name, _create(name, options))
    settings = {"out_indices": indices, "pretrained": pretrained}
    model = _create(name, {**options, **settings})
    reason = _failure(model, image_of(_SMALL_SIZE))
    if reason is None:
        return model, _form(name, model, _SMALL_SIZE)
    if not _SIZE_OPTIONS.keys() & options.keys():
        try:
            flexible = _create(name, {**options, **settings, **_SIZE_OPTIONS})
        except ValueError:
            pass  # it has no such keyword
        else:
            if _failure(flexible, image_of(_SMALL_SIZE)) is None:
                return flexible, _form(name, flexible, _SMALL_SIZE)
    size = _own_size(model, options)
    reason = _failure(model, image_of(size))
    if reason is not None:
        raise ValueError(
            f"{name} cannot be run on images of {_text(_SMALL_SIZE)} or {_text(size)} pixels: "
            f"{reason}; give its size, a multiple of 32, as {_SIZE_HINT}, or choose another model"
        )
    return model, _form(name, model, size)


_SIZE_OPTIONS = {"strict_img_size": False}
_SIZE_HINT = "model.backbone.options={img_size: [HEIGHT,WIDTH]}"


def _create(name: str, options: Mapping[str, Any]) -> nn.Module:
    try:
        return timm.create_model(name, features_only=True, **options)
    except _FAILURES as error:
        raise ValueError(
            f"timm cannot make a backbone of {name!r}{_with(options)}: {_reason(error)}; "
            "docs/backbones.md lists families that have stages at strides 4 to 32"
        ) from error


def _with(options: Mapping[str, Any]) -> str:
    return f" with {dict(options)}" if options else ""


def _stage_indices(name: str, model: nn.Module) -> list[int]:
    reductions: list[int] = model.feature_info.reduction()  # type: ignore[operator, union-attr]
    missing = [s for s in _STRIDES if s not in reductions]
    if missing:
        raise ValueError(f"{name} has stages at strides {reductions}, {missing} are missing")
    # The last stage of a stride: earlier ones of the same stride see less.
    last = [len(reductions) - 1 - reductions[::-1].index(s) for s in _STRIDES]
    numbers: Sequence[int] = model.feature_info.out_indices  # type: ignore[union-attr, assignment]
    return [numbers[place] for place in last]


def _own_size(model: nn.Module, options: Mapping[str, Any]) -> tuple[int, int]:
    """Returns the size that a model was made for, rounded up to what a detector gives it."""
    asked = options.get("img_size")
    if asked is None:
        asked = (getattr(model, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))[1:]
    height, width = (asked, asked) if isinstance(asked, int) else asked
    coarsest = STRIDES[-1]
    return -(-height // coarsest) * coarsest, -(-width // coarsest) * coarsest


def image_of(size: Sequence[int]) -> Tensor:
    """Returns an image that tells what a network computes: ``[1, 3, H, W]``."""
    height, width = size
    return torch.linspace(-1, 1, 3 * height * width).view(1, 3, height, width)


@torch.no_grad()
def _run(model: nn.Module, image: Tensor) -> list[Tensor]:
    with evaluation(model) as network:
        return network(image)


def _failure(model: nn.Module, image: Tensor) -> str | None:
    """Returns why a model does not take an image; None: it does."""
    try:
        _run(model, image)
    except _FAILURES as error:
        return _reason(error)
    return None


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(". ") if lines else type(error).__name__


def _text(size: Sequence[int]) -> str:
    return "x".join(map(str, size))


def _form(name: str, model: nn.Module, size: tuple[int, int]) -> Form:
    maps = _run(model, image_of(size))
    channels: list[int] = model.feature_info.channels()  # type: ignore[operator, union-attr]
    cells = [(size[0] // stride, size[1] // stride) for stride in _STRIDES]
    shapes = [tuple(m.shape[1:]) for m in maps]
    first = [(c, *s) for c, s in zip(channels, cells, strict=True)]
    last = [(*s, c) for c, s in zip(channels, cells, strict=True)]
    if shapes not in (first, last):
        raise ValueError(
            f"{name} returns maps of {shapes} for an image of {_text(size)} pixels, where strides "
            f"{list(_STRIDES)} need {first}: it cannot be a backbone"
        )
    return Form(size, shapes == last, _needs_contiguous_images(model))


def _needs_contiguous_images(model: nn.Module) -> bool:
    """Whether a convolution that reads few channels is 1x1 and strided.

    On some processors PyTorch's backward pass of such a one aborts the process ("double free") if
    its input is laid out channels-last.
    """
    return any(
        isinstance(m, nn.Conv2d)
        and m.in_channels in (3, 4)
        and tuple(m.kernel_size) == (1, 1)
        and max(m.stride) > 1
        for m in model.modules()
    )


def explain(
    error: BaseException, name: str, model: nn.Module, form: Form, images: Tensor
) -> BaseException:
    """Returns what to raise where a model failed: an error that says so if it was the size."""
    own, size = form.image_size, tuple(images.shape[2:])
    fits = size == own or "memory" in str(error)
    if fits or _failure(model, image_of(own).to(images)) is not None:
        return error
    return ValueError(
        f"{name} cannot take images of {_text(size)} pixels: {_reason(error)}; {_text(own)} fits: "
        f"give it images of that size without padding, or build it for another by {_SIZE_HINT} "
        "where it has this keyword"
    )


@torch.no_grad()
def find_steps(model: nn.Module, form: Form) -> list[list[str]] | None:
    """Finds the modules that, called one after the other, make each of the maps.

    Returns:
        Their names, a list per map; None if the model is no such sequence of maps.
    """
    if form.channels_last:
        return None
    ends: list[str] = model.feature_info.module_name()  # type: ignore[operator, union-attr]
    names = []
    for name, child in model.named_children():
        is_sequence = any(end.startswith(f"{name}.") for end in ends)
        names += [f"{name}.{i}" for i, _ in child.named_children()] if is_sequence else [name]
    steps: list[list[str]] = [[]]
    for name in names:
        steps[-1].append(name)
        if name in ends or name in [end.replace(".", "_") for end in ends]:
            steps.append([])
    steps.pop()
    found, x = [], image_of(form.image_size)
    expected = _run(model, image_of(form.image_size))
    try:
        with evaluation(model) as network:
            for part in steps:
                for name in part:
                    x = network.get_submodule(name)(x)
                found.append(x)
        same = len(found) == len(expected) and all(map(torch.equal, found, expected))
    except (*_FAILURES, AttributeError, ValueError):  # not one tensor from module to module
        return None
    return steps if same else None
