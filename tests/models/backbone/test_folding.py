"""What is known to fold is folded, the rest stays, and the outputs are the same."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, FrozenBatchNormAct2d, ScaledStdConv2d, SyncBatchNormAct
from timm.layers.conv2d_same import Conv2dSame
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from sparse_dset.models.backbone import TimmBackbone
from sparse_dset.models.backbone.folding import fold_norms
from sparse_dset.models.fuse import fuse

SIZES = [(64, 96), (96, 64), (160, 224)]


class _Doubled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


class _Shifted(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) + 1


def _stirred(model: nn.Module) -> nn.Module:
    """Statistics and parameters as after a training, so that every one matters."""
    for module in model.modules():
        for name in ("running_mean", "weight", "bias"):
            value = getattr(module, name, None)
            if hasattr(module, "running_mean") and value is not None:
                value.data += 0.1 * torch.rand_like(value)
        if getattr(module, "running_var", None) is not None:
            module.running_var.data *= 0.8 + 0.4 * torch.rand_like(module.running_var)
    return model.eval()


def _assert_close(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4 * float(b.abs().max()))


def _num_norms(model: nn.Module) -> int:
    return sum(hasattr(m, "running_mean") for m in model.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "name",
    [
        "tf_efficientnet_lite0",  # Conv2dSame
        "tf_mobilenetv3_small_minimal_100",
        "tf_mixnet_s",
        "test_nfnet",  # weights that are standardised in every forward pass
        "resnetv2_50x1_bit",
        "test_convnext",
        "repvgg_a0",
        "ghostnet_050",
        "regnetx_002",
        "ese_vovnet19b_slim",
        "hardcorenas_a",
        "xception41",  # features are taken by hooks
        "hrnet_w18_small",
    ],
)
@torch.no_grad()
def test_outputs_of_a_timm_model_stay_the_same(name, dtype):
    plain = _stirred(TimmBackbone(name)).to(dtype)
    folded = nn.ModuleList([copy.deepcopy(plain)])
    fuse(folded)
    for batch, size in enumerate(SIZES, 1):
        images = torch.rand(batch, 3, *size, dtype=dtype)
        _assert_close(folded[0](images), plain(images))


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_mobilenetv3_small_minimal_100"])
@torch.no_grad()
def test_convolutions_that_pad_by_the_size_of_the_map_are_folded_too(name):
    backbone = TimmBackbone(name).eval()
    assert _num_norms(backbone)
    assert not _num_norms(backbone.fused())


def _conv(kind=nn.Conv2d, **options):
    return kind(4, 4, 3, **{"padding": 1, **options})


def _weight_norm(conv):
    return nn.utils.weight_norm(conv)  # recomputed by a hook in every forward pass


def _hooked(module):
    module.register_forward_hook(lambda _, __, out: out * 2)
    return module


def _patched(conv):
    conv.forward = lambda x: F.conv2d(x, conv.weight, conv.bias, padding=1) + 1
    return conv


KNOWN = {
    "plain": (_conv, nn.BatchNorm2d),
    "strided": (lambda: _conv(stride=2), nn.BatchNorm2d),
    "padded by the map's size": (lambda: _conv(Conv2dSame, stride=2), nn.BatchNorm2d),
    "even kernel": (lambda: Conv2dSame(4, 4, 2), nn.BatchNorm2d),
    "same": (lambda: _conv(padding="same"), nn.BatchNorm2d),
    "dilated": (lambda: _conv(dilation=2, groups=2), nn.BatchNorm2d),
    "with activation": (_conv, BatchNormAct2d),
    "with dropout": (_conv, lambda c: BatchNormAct2d(c, drop_layer=nn.Dropout)),
    "another activation": (_conv, lambda c: BatchNormAct2d(c, act_layer=nn.Hardswish)),
    "synchronised": (_conv, nn.SyncBatchNorm),
    "synchronised with activation": (_conv, SyncBatchNormAct),
    "frozen": (_conv, FrozenBatchNorm2d),
    "frozen with activation": (_conv, FrozenBatchNormAct2d),
    "parametrised": (lambda: nn.utils.parametrizations.weight_norm(_conv()), nn.BatchNorm2d),
}
UNKNOWN = {
    "convolution with its own forward": (lambda: _conv(_Doubled), nn.BatchNorm2d),
    "standardised weights": (lambda: _conv(ScaledStdConv2d), nn.BatchNorm2d),
    "reflected borders": (lambda: _conv(padding_mode="reflect"), nn.BatchNorm2d),
    "weights of a hook": (lambda: _weight_norm(_conv()), nn.BatchNorm2d),
    "hook on the convolution": (lambda: _hooked(_conv()), nn.BatchNorm2d),
    "hook on the norm": (_conv, lambda c: _hooked(nn.BatchNorm2d(c))),
    "forward of the instance": (lambda: _patched(_conv()), nn.BatchNorm2d),
    "norm with its own forward": (_conv, _Shifted),
    "statistics of the batch": (_conv, lambda c: nn.BatchNorm2d(c, track_running_stats=False)),
    "norm without parameters": (_conv, lambda c: nn.BatchNorm2d(c, affine=False)),
    "statistics of groups": (_conv, lambda c: nn.GroupNorm(2, c)),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
@pytest.mark.parametrize("name", [*KNOWN, *UNKNOWN])
@torch.no_grad()
def test_pairs(name):
    conv, norm = {**KNOWN, **UNKNOWN}[name]
    model = _stirred(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), conv(), norm(4)))
    images = torch.rand(2, 3, 9, 12)
    probe, expected = torch.rand(1, 3, 8, 8), model(images)
    fold_norms(model, probe)
    _assert_close(model(images), expected)
    assert isinstance(model[2], nn.Conv2d) == (name in UNKNOWN)


class _Net(nn.Module):
    """Layers, and an order in which they run."""

    def __init__(self, run) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 4, 1), _conv()
        self.norm, self.other, self.act = nn.BatchNorm2d(4), _Shifted(4), nn.ReLU(inplace=True)
        self._run = run

    def forward(self, x):
        out = self._run(self, self.stem(x))
        return out if isinstance(out, tuple) else (out,)


def _read_again(net, x):
    y = net.conv(x)
    return net.norm(y) + y


def _read_first(net, x):
    y = net.conv(x)
    gate = y.mean()
    return net.norm(y) * gate


def _read_through_a_view(net, x):
    y = net.conv(x)
    return net.norm(y) + y[:, :, :1]


def _changed_in_place(net, x):
    y = net.conv(x)
    return net.norm(net.act(y))


def _two_norms(net, x):
    y = net.conv(x)
    return net.norm(y) + net.other(y)


def _norm_twice(net, x):
    return net.norm(net.norm(net.conv(x)))


def _convolution_twice(net, x):
    return net.norm(net.conv(net.conv(x)))


def _both_twice(net, x):
    return net.norm(net.conv(net.norm(net.conv(x))))


def _returned(net, x):
    y = net.conv(x)
    return net.norm(y), y


@pytest.mark.parametrize(
    "run",
    [
        _read_again,
        _read_first,
        _read_through_a_view,
        _changed_in_place,
        _two_norms,
        _norm_twice,
        _convolution_twice,
        _both_twice,
        _returned,
    ],
)
@torch.no_grad()
def test_what_others_read_too_is_left_alone(run):
    model, images = _stirred(_Net(run)), torch.rand(2, 3, 9, 12)
    expected = model(images)
    fold_norms(model, torch.rand(1, 3, 8, 8))
    _assert_close(model(images), expected)
    assert isinstance(model.norm, nn.BatchNorm2d)


@torch.no_grad()
def test_a_layer_with_two_names_is_left_alone():
    model = _Net(lambda net, x: net.norm(net.conv(x)))
    model.alias = model.norm
    images = torch.rand(2, 3, 9, 12)
    expected = _stirred(model)(images)
    fold_norms(model, torch.rand(1, 3, 8, 8))
    _assert_close(model(images), expected)
    assert model.alias is model.norm


@torch.no_grad()
def test_blocks_with_wide_expansions_are_no_products_of_rows():
    """An inverted residual whose first convolution is 3x3, on maps that are worth strips."""
    model = timm.create_model("test_efficientnet", features_only=True).eval()
    block = next(m for m in model.modules() if type(m).__name__ == "InvertedResidual")
    wide = block.conv_pw
    block.conv_pw = nn.Conv2d(wide.in_channels, wide.out_channels, 3, padding=1, bias=False)
    block.se = nn.Identity()
    backbone = TimmBackbone("test_efficientnet").eval()
    backbone.model = _stirred(model)
    images = torch.rand(1, 3, 640, 640)
    expected = backbone(images)
    _assert_close(backbone.fused()(images), expected)
