"""A detector as it is built, whose samples lie exactly on cells' centres."""

from __future__ import annotations

import pytest
import torch

from sparse_dset import build_detector
from tests.models.training import run_step


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_sparse_equals_masked_with_initial_weights(training: bool) -> None:
    model = build_detector("nano", 3, pretrained=False).double().train(training)
    images = torch.rand(3, 3, 96, 160, dtype=torch.float64)
    boxes = torch.tensor([[0.3, 0.4, 0.2, 0.2], [0.7, 0.6, 0.1, 0.3]])
    targets = [{"labels": torch.tensor([0, 2]), "boxes": boxes} for _ in images]
    coarse = torch.rand(3, 3, 5) < 0.5
    coarse[1] = False
    kept = [coarse]
    for _ in range(2):
        finer = kept[0].repeat_interleave(2, 1).repeat_interleave(2, 2)
        kept.insert(0, finer & (torch.rand(finer.shape) < 0.7))
    gradients = []
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for execution in ("sparse", "masked"):
        model.load_state_dict(state)
        model.zero_grad()
        run_step(model, images, targets, execution=execution, kept=kept)
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, one in gradients[0].items():
        if one is not None:
            scale = max(1.0, one.abs().max().item())
            torch.testing.assert_close(one, gradients[1][name], rtol=0, atol=1e-4 * scale)


def test_targets_must_be_as_many_as_images() -> None:
    model = build_detector("nano", 3, pretrained=False)
    target = {"labels": torch.tensor([0]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}
    with pytest.raises(ValueError, match="1 targets were given for 2 images"):
        model(torch.rand(2, 3, 64, 64), [target])
