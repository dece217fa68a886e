from __future__ import annotations

import pytest
import torch

from sparse_dset.models.decoder.decoder import Decoder, _may_attend
from sparse_dset.structures.geometry import Geometry
from sparse_dset.structures.targets import pad_targets
from tests.models.detectors import make_targets


def _inputs(decoder, batch=2):
    maps = [torch.randn(batch, 16, 64 // s, 96 // s) for s in (8, 16, 32)]
    geometry = Geometry(torch.tensor([[64.0, 96.0]] * batch), (64, 96), False)
    return decoder.read(maps), geometry


def _decoder(**arguments):
    sizes = {"width": 16, "num_heads": 2, "ffn_dim": 24, "num_layers": 3, "num_queries": 10}
    return Decoder(3, 16, **sizes, **arguments)


@pytest.mark.parametrize("background", ["zero", "learned"])
def test_lean_heads_leave_out_what_nobody_reads(background):
    decoder = _decoder(background=background).eval()
    memory, geometry = _inputs(decoder)
    with torch.no_grad():
        full = decoder(memory, geometry)
        decoder.lean_heads = True
        lean = decoder(memory, geometry)
    assert (len(full.layers), len(lean.layers)) == (3, 1)
    assert lean.layers[0].logits.shape == (2, 10, 3)
    assert lean.layers[0].boxes.shape == (2, 10, 4)
    torch.testing.assert_close(lean.layers[0].logits, full.layers[-1].logits)
    torch.testing.assert_close(lean.layers[0].boxes, full.layers[-1].boxes)
    torch.testing.assert_close(lean.encoder.boxes, full.encoder.boxes)
    assert lean.denoising is None
    assert lean.router_stats == ()


def test_training_gives_all_layers_and_the_denoising_queries():
    decoder = _decoder(num_denoising=6).train()
    targets = pad_targets(make_targets(3, 1), 3, "cpu")
    output = decoder(*_inputs(decoder), targets)
    assert len(output.layers) == len(output.denoising.layers) == 3
    assert output.denoising.layers[0].logits.shape == (2, 12, 3)
    assert all(p.boxes.shape == (2, 10, 4) for p in output.layers)


def test_denoising_does_not_change_the_matching_queries():
    decoder = _decoder(num_denoising=6).train()
    inputs = _inputs(decoder)
    targets = pad_targets(make_targets(3, 1), 3, "cpu")
    with torch.no_grad():
        ours, theirs = decoder(*inputs, targets), decoder(*inputs)
    for a, b in zip(ours.layers, theirs.layers, strict=True):
        torch.testing.assert_close(a.logits, b.logits, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(a.boxes, b.boxes, rtol=1e-5, atol=1e-5)


def test_training_and_evaluation_agree():
    decoder = _decoder()
    memory, geometry = _inputs(decoder.eval())
    with torch.no_grad():
        last = decoder(memory, geometry).layers[-1]
        trained = decoder.train()(memory, geometry).layers[-1]
    torch.testing.assert_close(trained.logits, last.logits)
    torch.testing.assert_close(trained.boxes, last.boxes)


def test_who_may_attend_to_whom():
    assert _may_attend(None, None) is None
    real = torch.tensor([[True, True, False]])
    allowed = _may_attend(real, None)[0]
    assert allowed.int().tolist() == [[1, 1, 0], [1, 1, 0], [1, 1, 1]]
    hidden = torch.tensor([[False, True, False]] * 3)
    both = _may_attend(real, hidden)[0]
    assert both.int().tolist() == [[1, 0, 0], [1, 0, 0], [1, 0, 1]]
    assert torch.equal(_may_attend(None, hidden)[0], ~hidden)


def test_an_unknown_background_is_refused():
    with pytest.raises(ValueError, match='"zero" or "learned"'):
        _decoder(background="mean")
