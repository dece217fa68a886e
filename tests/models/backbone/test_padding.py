from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sparse_dset.benchmark.flops import count_flops
from sparse_dset.config import build_from_config, compose_config
from sparse_dset.models.backbone import ResNetVd, TimmBackbone
from sparse_dset.models.backbone.base import Backbone
from sparse_dset.models.backbone.padding import padding_stays_zero
from sparse_dset.structures.geometry import pad_batch


def _network():
    return (
        nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Conv2d(4, 4, 3, padding=1),
        )
        .double()
        .eval()
    )


def test_a_padded_image_gives_inside_what_it_gives_alone():
    network, image = _network(), torch.randn(1, 3, 32, 48, dtype=torch.float64)
    padded = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    padded[:, :, :32, :48] = image
    pixels = torch.zeros(1, 64, 64, dtype=torch.bool)
    pixels[:, :32, :48] = True
    with padding_stays_zero(pixels):
        inside = network(padded)[:, :, :4, :6]
    torch.testing.assert_close(inside, network(image))
    outside_the_context = network(padded * pixels)[:, :, :4, :6]
    assert not torch.allclose(outside_the_context, network(image))


def test_without_padding_nothing_changes():
    network, image = _network(), torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with padding_stays_zero(torch.ones(1, 64, 64, dtype=torch.bool)):
        assert torch.equal(network(image), network(image))


def test_a_backbone_with_other_sizes_is_refused():
    pixels = torch.ones(1, 64, 64, dtype=torch.bool)
    odd = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    with padding_stays_zero(pixels), pytest.raises(ValueError, match="cannot take padded batches"):
        odd(torch.randn(1, 3, 64, 64))


class _SqueezeAndExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.reduce(x.mean((2, 3), keepdim=True)).sigmoid()


def _padded(image: torch.Tensor, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The image in a corner of noise, and where it is."""
    padded = torch.randn(len(image), 3, height, width, dtype=image.dtype)
    padded[:, :, : image.shape[2], : image.shape[3]] = image
    pixels = torch.zeros(len(image), height, width, dtype=torch.bool)
    pixels[:, : image.shape[2], : image.shape[3]] = True
    return padded, pixels


@pytest.mark.parametrize("size", [(64, 64), (64, 128)])
def test_means_over_the_image_leave_padding_out(size):
    network = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), _SqueezeAndExcite()).double()
    image = torch.randn(1, 3, 32, 48, dtype=torch.float64)
    padded, pixels = _padded(image, *size)
    with padding_stays_zero(pixels):
        inside = network(padded)[:, :, :16, :24]
    torch.testing.assert_close(inside, network(image))


def test_statistics_of_a_batch_leave_padding_out():
    network, image = _network().train(), torch.randn(2, 3, 32, 48, dtype=torch.float64)
    alone = copy.deepcopy(network)
    padded, pixels = _padded(image, 64, 64)
    with padding_stays_zero(pixels):
        inside = network(padded)[:, :, :4, :6]
    expected = alone(image)
    torch.testing.assert_close(inside, expected)
    inside.square().sum().backward()
    expected.square().sum().backward()
    for (name, ours), theirs in zip(network.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)
    for (name, ours), theirs in zip(network.named_buffers(), alone.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)


class _PooledBy(nn.Module):
    def __init__(self, pool) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.pool(x).sigmoid()


@pytest.mark.parametrize(
    "layer",
    [
        _PooledBy(nn.AdaptiveAvgPool2d(1)),
        _PooledBy(nn.AdaptiveAvgPool2d((1, 1))),
        _PooledBy(lambda x: torch.nn.functional.adaptive_avg_pool2d(x, output_size=1)),
        _PooledBy(lambda x: x.mean(1, keepdim=True)),  # of channels
        _PooledBy(lambda x: x.mean(dim=(-2, -1), keepdim=True)),
        nn.MaxPool2d(3, 1, 1),  # of values below zero, too
    ],
)
@torch.no_grad()
def test_other_poolings_leave_padding_out(layer):
    network = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), layer, nn.Conv2d(4, 4, 3, 1, 1)).double()
    image = torch.randn(1, 3, 32, 48, dtype=torch.float64)
    padded, pixels = _padded(image, 64, 64)
    with padding_stays_zero(pixels):
        inside = network(padded)[:, :, :16, :24]
    assert inside.isfinite().all()
    torch.testing.assert_close(inside, network(image))


SEES = {
    "efficientnet_lite0": False,
    "resnet18": False,
    "regnety_002": False,  # squeeze and excitation
    "legacy_seresnet18": False,
    "test_mambaout": False,
    "pvt_v2_b0": True,
    "tiny_vit_5m_224": True,
    "poolformer_s12": True,
    "twins_svt_small": True,
    "mobilevit_xxs": True,
    "edgenext_xx_small": True,
    "swin_tiny_patch4_window7_224": True,
    "test_maxvit": True,
    "hgnetv2_b0": True,  # pads on one side, before a pooling
}


def _batch(small: torch.Tensor, size: tuple[int, int], others: int = 1):
    images = torch.rand(1 + others, 3, *size, dtype=small.dtype)
    images[0, :, : small.shape[2], : small.shape[3]] = small[0]
    mask = torch.zeros(1 + others, *size, dtype=torch.bool)
    mask[0, small.shape[2] :] = mask[0, :, small.shape[3] :] = True
    return images, mask


@pytest.mark.parametrize("name", sorted(SEES.keys() - {"test_maxvit"}))
@torch.no_grad()
def test_whether_a_backbone_sees_padding_is_found_out_and_it_is_kept_out(name):
    state = torch.get_rng_state()
    backbone = TimmBackbone(name).eval()
    assert not backbone._padding_seen  # the constructor does not ask
    torch.set_rng_state(state)
    for size in ((64, 64), (45, 83)):
        small = torch.rand(1, 3, *size)
        images, mask = _batch(small, (128, 192))
        found = backbone.extract(*_geometry(images, mask))
        expected = backbone.extract(*_geometry(small, None))
        for ours, theirs in zip(found, expected, strict=True):
            height, width = theirs.shape[2:]
            scale = float(theirs.abs().max())
            torch.testing.assert_close(
                ours[:1, :, :height, :width], theirs, rtol=0, atol=1e-5 * scale
            )
            assert ours[1].abs().sum() > 0
            assert not ours[0, :, height:].any()
            assert not ours[0, :, :, width:].any()
    assert backbone.sees_padding == SEES[name]


def _geometry(images, mask):
    padded, geometry = pad_batch(images, mask)
    return padded, range(4), geometry


@torch.no_grad()
def test_a_branch_that_starts_at_nearly_nothing_does_not_hide_what_it_sees():
    backbone = TimmBackbone("poolformer_s12").eval()  # scales its branches by 1e-5
    for name, parameter in backbone.named_parameters():
        if "layer_scale" in name:
            parameter.zero_()
    assert backbone.sees_padding


@pytest.mark.parametrize(("name", "sees"), [("efficientnet_lite0", False), ("pvt_v2_b0", True)])
def test_the_inference_form_sees_what_the_published_form_sees(name, sees):
    backbone = TimmBackbone(name).eval().requires_grad_(False).fused()
    assert backbone.sees_padding == sees


@torch.no_grad()
def test_an_image_of_nothing_but_padding_is_zero():
    backbone = TimmBackbone("pvt_v2_b0").eval()
    mask = torch.zeros(2, 64, 96, dtype=torch.bool)
    mask[1] = True
    for level in backbone.extract(*_geometry(torch.rand(2, 3, 64, 96), mask)):
        assert level.isfinite().all()
        assert level[0].any()
        assert not level[1].any()


@torch.no_grad()
def test_images_of_one_size_run_together():
    backbone, sizes = TimmBackbone("pvt_v2_b0").eval(), []
    assert backbone.sees_padding
    backbone.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape))
    mask = torch.zeros(4, 128, 96, dtype=torch.bool)
    mask[0, 64:], mask[2, 50:], mask[3, 100:] = True, True, True
    images, levels, geometry = _geometry(torch.rand(4, 3, 128, 96), mask)
    maps = backbone.extract(images, levels, geometry)
    assert sizes == [(2, 3, 64, 96), (2, 3, 128, 96)]
    for i in range(4):
        height = 64 if i in (0, 2) else 128
        expected = backbone(images[i : i + 1, :, :height], levels)
        for ours, theirs, stride in zip(maps, expected, (4, 8, 16, 32), strict=True):
            inside = geometry.valid_mask(stride)[i : i + 1, None, : height // stride]
            rows = ours[i : i + 1, :, : height // stride]
            torch.testing.assert_close(rows, theirs * inside, rtol=0, atol=1e-4)


def test_a_backbone_of_convolutions_need_not_find_out():
    assert ResNetVd.sees_padding is False
    assert Backbone.sees_padding is not False


def test_finding_out_is_not_counted():
    overrides = ["model=nano", "model.backbone.name=pvt_v2_b0", "model.backbone.frozen=[]"]
    config = compose_config("detector", [*overrides, "model.backbone.weights=null"])
    model = build_from_config(config, pretrained=False).eval()
    images, mask = _batch(torch.rand(1, 3, 64, 64), (96, 128), others=0)
    counts = [count_flops(model, images, execution="dense", padding_mask=mask) for _ in range(2)]
    assert counts[0] == counts[1]
