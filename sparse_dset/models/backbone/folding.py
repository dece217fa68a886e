"""Folds the normalisations of a convolutional network that was written elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, FrozenBatchNormAct2d, SyncBatchNormAct
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import pad_same
from timm.models._efficientnet_blocks import InvertedResidual
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.ops import FrozenBatchNorm2d

from sparse_dset.models.backbone.flow import (
    Flow,
    check_same_convolution,
    is_same_convolution,
)
from sparse_dset.models.layers import fold_norm, fused_conv2d
from sparse_dset.ops import ConvWeights, dense_conv2d, inverted_residual, worth_strips
from sparse_dset.ops.activations import activate

_CONVOLUTIONS = (nn.Conv2d.forward, Conv2dSame.forward)
_NORMALISATIONS = (
    nn.BatchNorm2d.forward,
    nn.SyncBatchNorm.forward,
    FrozenBatchNorm2d.forward,
    BatchNormAct2d.forward,
    SyncBatchNormAct.forward,
    FrozenBatchNormAct2d.forward,
)
"""What these compute is known. A subclass that computes something else has its own ``forward``."""


def fold_norms(model: nn.Module, probe: Tensor) -> None:
    """Folds, in place, each normalisation into the convolution before it, where that is exact.

    A pair is folded if both compute what is known (see ``_NORMALISATIONS``), each runs once in a
    forward pass, and nothing but the normalisation reads what the convolution returns. All of this
    is seen in a forward pass, not guessed from names. Everything else stays as it is.

    Args:
        model: in evaluation.
        probe: images that it takes.

    Raises:
        RuntimeError: the outputs changed.
    """
    expected = model(probe)
    for conv_name, norm_name in _pairs(model, probe):
        conv, norm = model.get_submodule(conv_name), model.get_submodule(norm_name)
        assert isinstance(conv, nn.Conv2d)
        after = [m for m in (getattr(norm, name, None) for name in ("drop", "act")) if m]
        after = [m for m in after if type(m) is not nn.Identity]
        activation = "none"
        if len(after) == 1 and type(after[0]) in _ACTIVATION_NAMES and not _has_hooks(after[0]):
            activation, after = _ACTIVATION_NAMES[type(after[0])], []
        model.set_submodule(conv_name, _FusedConv2d(conv, norm, activation))
        model.set_submodule(norm_name, nn.Sequential(*after) if after else nn.Identity())
    for ours, theirs in zip(model(probe), expected, strict=True):
        if not torch.allclose(ours, theirs, rtol=0, atol=1e-3 * float(theirs.abs().max())):
            raise RuntimeError("folding the normalisations of this backbone changed its outputs")


_ACTIVATION_NAMES = {nn.ReLU: "relu", nn.ReLU6: "relu6", nn.SiLU: "silu"}


def _pairs(model: nn.Module, probe: Tensor) -> list[tuple[str, str]]:
    """Returns names of convolutions and of the normalisations into which alone they lead."""
    names = Counter(id(m) for _, m in model.named_modules(remove_duplicate=False))
    convs, norms = {}, {}
    for name, module in model.named_modules():
        if names[id(module)] > 1 or _has_hooks(module) or "forward" in vars(module):
            continue
        if _is_known_convolution(module):
            convs[name] = module
        elif _is_known_normalisation(module):
            norms[name] = module
    with _Readers(convs, norms) as readers:
        returned = model(probe)
    return readers.pairs(returned)


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _is_known_convolution(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Conv2d)
        and type(module).forward in _CONVOLUTIONS
        and type(module)._conv_forward is nn.Conv2d._conv_forward
        and module.padding_mode == "zeros"
    )


def _is_known_normalisation(module: nn.Module) -> bool:
    return (
        type(module).forward in _NORMALISATIONS
        and getattr(module, "running_mean", None) is not None
        and module.weight is not None
    )


class _Readers(TorchDispatchMode):
    """Notes within it which normalisation reads what each convolution returned, and who else."""

    def __init__(self, convs: Mapping[str, nn.Module], norms: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self._convs, self._norms = convs, norms
        self._returned: dict[int, tuple[Tensor, str]] = {}  # tensors are held: ids stay theirs
        self._readers: dict[int, list[str]] = {}
        self._reads, self._reads_by_norms = Counter[int](), Counter[int]()
        self._calls = Counter[str]()
        self._hooks = ExitStack()

    def __enter__(self) -> _Readers:
        for name, conv in self._convs.items():
            self._hooks.callback(conv.register_forward_hook(partial(self._made, name)).remove)
        for name, norm in self._norms.items():
            before, after = partial(self._before, name), self._after
            self._hooks.callback(norm.register_forward_pre_hook(before).remove)
            self._hooks.callback(norm.register_forward_hook(after).remove)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._hooks.close()

    def _made(self, name: str, _: nn.Module, __: Any, out: Tensor) -> None:
        self._calls[name] += 1
        self._returned[id(out)] = (out, name)
        self._readers[id(out)] = []

    def _before(self, name: str, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._calls[name] += 1
        for key in {id(x) for x in inputs} & self._returned.keys():
            self._readers[key].append(name)
            self._reads_by_norms[key] -= self._reads[key]

    def _after(self, _: nn.Module, inputs: tuple[Any, ...], __: Any) -> None:
        for key in {id(x) for x in inputs} & self._returned.keys():
            self._reads_by_norms[key] += self._reads[key]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self._reads.update({id(x) for x in tree_leaves((args, kwargs))} & self._returned.keys())
        return func(*args, **(kwargs or {}))

    def pairs(self, returned: Any) -> list[tuple[str, str]]:
        """Returns (convolution, normalisation) by name.

        Args:
            returned: by the model, whose caller is one more reader.
        """
        outside = {id(x) for x in tree_leaves(returned)}
        return [
            (conv, readers[0])
            for key, (_, conv) in self._returned.items()
            for readers in [self._readers[key]]
            if len(readers) == 1
            and key not in outside
            and self._reads[key] == self._reads_by_norms[key]
            and self._calls[conv] == self._calls[readers[0]] == 1
        ]


class _FusedConv2d(nn.Module):
    """A convolution of any kind with its normalisation folded in and its activation."""

    def __init__(self, conv: nn.Conv2d, norm: nn.Module, activation: str) -> None:
        super().__init__()
        weight, bias = fold_norm(conv.weight, norm, conv.bias)
        self.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
        self.bias = nn.Parameter(bias.contiguous(), requires_grad=False)
        self.stride, self.activation = conv.stride, activation
        padding = "same" if type(conv).forward is Conv2dSame.forward else conv.padding
        odd = all(size % 2 for size in conv.kernel_size)
        if padding == "same" and odd and conv.stride == conv.dilation == (1, 1):
            padding = tuple(size // 2 for size in conv.kernel_size)
        self._layout: tuple[Any, ...] = (conv.stride, padding, conv.dilation, conv.groups)

    @property
    def is_same(self) -> bool:
        """Whether ``dense_conv2d`` computes it."""
        return is_same_convolution(self.weight, *self._layout)

    def forward(self, x: Any) -> Any:
        options = self.weight, self.bias, self.stride[0], self.activation
        if not isinstance(x, Tensor):
            check_same_convolution(self.weight, *self._layout)
            return x.step(lambda m, onto: fused_conv2d(m, *options, onto), self.stride[0])
        if self.is_same:
            return dense_conv2d(x, *options)
        stride, padding, dilation, groups = self._layout
        if padding == "same":  # by the size of the map, more of it at the right and bottom
            x, padding = pad_same(x, list(self.weight.shape[2:]), stride, dilation), 0
        out = F.conv2d(x, self.weight, self.bias, stride, padding, dilation, groups)
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


def fuse_blocks(model: nn.Module) -> None:
    """Replaces the inverted residual blocks that consist of nothing but fused convolutions."""
    for name, block in list(model.named_modules()):
        if _is_plain_inverted_residual(block):
            model.set_submodule(name, _FusedInvertedResidual(block))


def _is_plain_inverted_residual(block: nn.Module) -> TypeGuard[InvertedResidual]:
    if not isinstance(block, InvertedResidual) or _has_hooks(block):
        return False
    convs = [block.conv_pw, block.conv_dw, block.conv_pwl]
    others = [m for m in block.children() if m not in convs]
    return (
        type(block).forward is InvertedResidual.forward
        and all(type(m) is nn.Identity for m in others)
        and all(isinstance(m, _FusedConv2d) and m.is_same for m in convs)
        and all(m.weight.shape[2:] == (1, 1) and m.stride == (1, 1) for m in convs[::2])
        and block.conv_dw.weight.shape[1] == 1
    )
