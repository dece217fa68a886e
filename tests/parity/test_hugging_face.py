"""The dense execution against Hugging Face's RT-DETRv2 with the same weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparse_dset import build_detector
from sparse_dset.losses.totals import StepTotals

hugging_face = pytest.importorskip("sparse_dset.benchmark.hugging_face")


@pytest.mark.slow
@pytest.mark.parametrize("depth", [18, 50])
def test_dense_equals_hugging_face(depth: int) -> None:
    # float64 keeps near ties of the query selection in one order.
    peer = hugging_face.build(depth).double()
    model = build_detector(f"r{depth}", 80, ["model.encoder.position=row_major"]).double().eval()
    model.load_rtdetr(hugging_face.released_names(peer))
    for height, width in [(320, 320), (320, 640)]:
        images = torch.rand(2, 3, height, width, dtype=torch.float64)
        with torch.no_grad():
            ours, theirs = model(images, execution="dense"), peer(images)
        torch.testing.assert_close(ours.pred_logits, theirs.logits, rtol=0, atol=1e-4)
        torch.testing.assert_close(ours.pred_boxes, theirs.pred_boxes, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_the_peer_that_is_trained_starts_from_the_same_backbone() -> None:
    peer, model = hugging_face.PeerDetector(3).eval(), build_detector("lite0", 3).eval()
    images = torch.rand(2, 3, 96, 160)
    with torch.no_grad():
        theirs = peer.backbone((images - 0.5) / 0.5, torch.ones(2, 96, 160, dtype=torch.long))
        for (feature, _), ours in zip(theirs, model.backbone(images)[1:], strict=True):
            torch.testing.assert_close(feature, ours, rtol=1e-4, atol=1e-4)
    targets = [{"labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}] * 2
    out = peer.train()(images, targets)
    assert out.num_kept.tolist() == [[240, 60, 15]] * 2
    hugging_face.peer_criterion(out, targets)["loss"].backward()
    assert peer.backbone.model._backbone.conv_stem.weight.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="dense only"):
        peer(images, execution="sparse")
    with pytest.raises(ValueError, match="one size"):
        peer(images, padding_mask=torch.ones(2, 96, 160, dtype=torch.bool))


def test_the_peer_freezes_what_the_model_freezes() -> None:
    frozen = ("conv_stem", "bn1", "blocks.0")
    peer, model = (
        hugging_face.PeerDetector(3, pretrained=False, frozen=frozen).train(),
        build_detector("lite0", 3, [f"model.backbone.frozen=[{','.join(frozen)}]"]).train(),
    )

    def learning(backbone: nn.Module) -> int:
        return sum(p.numel() for p in backbone.parameters() if p.requires_grad)

    def normalising(backbone: nn.Module) -> int:
        return sum(isinstance(m, nn.BatchNorm2d) and m.training for m in backbone.modules())

    # The peer's ends at stride 32 too, with the same layers.
    assert learning(peer.backbone) == learning(model.backbone)
    assert normalising(peer.backbone) == normalising(model.backbone)


def test_the_parts_of_a_step_add_up_to_its_loss() -> None:
    peer = hugging_face.PeerDetector(2, pretrained=False).eval()
    images = torch.rand(2, 3, 160, 160)
    boxes = torch.rand(7, 4) * 0.3 + 0.2
    targets = [
        {"labels": torch.zeros(len(part), dtype=torch.int64), "boxes": part}
        for part in boxes.split([1, 6])
    ]
    with torch.no_grad():
        step = StepTotals()
        whole = hugging_face.peer_criterion(peer(images, targets), targets, step)
        parts = [
            hugging_face.peer_criterion(
                peer(images[i : i + 1], targets[i : i + 1]),
                targets[i : i + 1],
                StepTotals(step.own),
            )
            for i in (0, 1)
        ]
    total = sum(float(part["loss"]) for part in parts)
    assert total == pytest.approx(float(whole["loss"]), rel=1e-4)


def test_the_peer_starts_from_the_released_prior() -> None:
    bias = hugging_face.build_lite0(3).model.enc_score_head.bias
    torch.testing.assert_close(bias.sigmoid(), torch.full((3,), 0.01))
