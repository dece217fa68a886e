"""Comparisons of networks and their parts compute the same in every arm."""

from __future__ import annotations

import pytest
import torch

from sparse_dset import build_detector, native
from sparse_dset.benchmark import networks
from sparse_dset.benchmark.comparison import compare, format_comparisons

pytestmark = pytest.mark.skipif(
    bool(native.unavailable_reason()), reason=native.unavailable_reason()
)


@pytest.fixture
def detector():
    detector = build_detector("r18", 3, ["model.image_size=[64,128]"], pretrained=False)
    return detector.eval()


@pytest.mark.parametrize("part", ["neck", "decoder"])
def test_parts(part, detector):
    make = {"neck": networks.neck_cases, "decoder": networks.decoder_cases}[part]
    with torch.no_grad():
        for case in make(detector, "r18", (0.5, 1.0)):
            assert {row["case"] for row in compare(case, warmup=1, repeats=1)} == {case.name}


def test_training_steps_cost_less_memory_where_tokens_are_pruned():
    pytest.importorskip("transformers")
    # Hugging Face's needs as many tokens as queries.
    detector = build_detector("r18", 3, ["model.image_size=[128,160]"], pretrained=False)
    with torch.no_grad():
        (case,) = networks.training_cases(detector, "r18", (0.2, 1.0), 2)
        rows = {row["arm"]: row for row in compare(case, warmup=1, repeats=1)}
    assert list(rows) == ["Hugging Face", "our dense", "sparse 0.2", "sparse 1"]
    assert 0 < rows["sparse 0.2"]["saved_mib"] < 0.8 * rows["sparse 1"]["saved_mib"]
    assert all(parameter.grad is None for parameter in detector.parameters())
    assert "| training step of r18, 2 images" in format_comparisons(list(rows.values()))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["r18", "lite0"])
def test_peers(name):
    for package in ("transformers", "onnx", "onnxruntime", "openvino"):
        pytest.importorskip(package)
    overrides = ["model.image_size=[128,128]"]
    detector = build_detector(name, 80, overrides, pretrained=False).eval()
    with torch.no_grad():
        (case,) = networks.peer_cases(detector, name, (0.5, 1.0))
        rows = {row["arm"]: row for row in compare(case, warmup=1, repeats=1)}
    ours = ["our dense", "sparse 0.5", "sparse 1"]
    peers = ["Hugging Face eager", "ONNX Runtime", "OpenVINO"]
    assert list(rows) == [peers[0], *ours, *peers[1:]]
    assert {arm for arm, row in rows.items() if row["role"] == "peer"} == set(peers)
    assert {arm for arm, row in rows.items() if row["role"] == "pruned"} == {"sparse 0.5"}
    if name == "r18":
        assert max(rows[arm]["error"] for arm in rows if arm != "sparse 0.5") < 1e-4
