"""The dense execution against outputs of the released RT-DETRv2 for weights made by a rule."""

from __future__ import annotations

import json
from hashlib import sha256

import numpy as np
import pytest
import torch

from sparse_dset import build_detector

FILLED = ("encoder.", "decoder.", "backbone.")


def _weight(name, shape):
    """See the README beside the reference's files."""
    seed = int.from_bytes(sha256(name.encode()).digest()[:4], "little")
    x = np.random.default_rng(seed).standard_normal(int(np.prod(shape))).reshape(shape)
    if name.endswith("running_var"):
        x = 0.9 + 0.2 * np.abs(x)
    elif name.endswith("running_mean"):
        x = 0.1 * x
    elif len(shape) >= 2:
        x = x / np.sqrt(np.prod(shape[1:]))
    elif len(shape) == 1:
        x = 1 + 0.1 * x if name.endswith("weight") else 0.1 * x
    return torch.from_numpy(np.asarray(x))


def _shapes(root, name):
    return json.loads((root / f"{name}_state_dict.json").read_text())


def _model(root, name, dtype):
    model = build_detector(name, 80, pretrained=False)
    own = model.state_dict()
    state = {}
    for key, shape in _shapes(root, name).items():
        counts = key in own and not own[key].is_floating_point()
        state[key] = torch.zeros(shape, dtype=torch.int64) if counts else _weight(key, shape)
    model = model.to(dtype).eval()
    model.load_rtdetr(state)
    return model


def _compare(root, name, size, dtype):
    height, width = size
    image = np.random.default_rng(10000 * height + width).random((1, 3, height, width))
    model = _model(root, name, dtype)
    with torch.no_grad():
        out = model(torch.from_numpy(image).to(dtype), execution="dense")
    ours = torch.cat([out.pred_logits[0], out.pred_boxes[0]], 1).double()
    with np.load(root / f"{name}.npz") as answers:
        parts = [answers[f"{kind}_{height}x{width}"] for kind in ("logits", "boxes")]
    return ours, torch.from_numpy(np.concatenate(parts, 1)).double()


@pytest.mark.parametrize("name", ["r18", "r50"])
def test_names_and_shapes_are_all_taken(name, reference_root):
    shapes = _shapes(reference_root, name)
    model = build_detector(name, 80, pretrained=False)
    own = {k: list(v.shape) for k, v in model.state_dict().items()}
    derived = {"decoder.anchors", "decoder.valid_mask"}
    assert {k: v for k, v in shapes.items() if k not in derived} == {
        k: v for k, v in own.items() if k.startswith(FILLED)
    }


@pytest.mark.parametrize(
    ("name", "size"),
    [
        pytest.param("r18", (320, 640), marks=pytest.mark.slow),
        pytest.param("r18", (640, 640), marks=pytest.mark.slow),
        pytest.param("r18", (736, 1280), marks=pytest.mark.slow),
        pytest.param("r50", (320, 640), marks=pytest.mark.slow),
        pytest.param("r50", (640, 640), marks=pytest.mark.slow),
    ],
)
def test_outputs_in_float64(name, size, reference_root):
    ours, theirs = _compare(reference_root, name, size, torch.float64)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("r18", (320, 640)),
        pytest.param("r18", (640, 640), marks=pytest.mark.slow),
        pytest.param("r50", (320, 640), marks=pytest.mark.slow),
    ],
)
def test_outputs_in_float32(name, size, reference_root):
    """Near ties put a few queries in another order, or others in their place."""
    ours, theirs = _compare(reference_root, name, size, torch.float32)
    nearest = (ours[:, None] - theirs[None]).abs().amax(-1).amin(1)
    assert int((nearest > 1e-4).sum()) <= 4
