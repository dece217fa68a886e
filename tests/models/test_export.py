"""The dense execution in other runtimes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sparse_dset import build_detector, load_detector
from sparse_dset.benchmark.peers import onnxruntime_network, openvino_network
from sparse_dset.config import package_file
from sparse_dset.data.images import ImageReader
from sparse_dset.data.synthetic.scene import render_scene
from sparse_dset.models.detector import Detector
from sparse_dset.models.export import export_onnx

pytest.importorskip("onnx")


def _network(runtime: str) -> Callable[[Path, int], Callable[[Tensor], tuple[Tensor, Tensor]]]:
    pytest.importorskip(runtime)
    return {"onnxruntime": onnxruntime_network, "openvino": openvino_network}[runtime]


def _difference(
    detector: Detector, images: Tensor, path: Path, runtime: str, in_order: bool = True
) -> float:
    """The largest one of logits and boxes; scores alone, sorted, where queries may tie."""
    with torch.no_grad():
        out = detector(images, execution="dense")
    logits, boxes = _network(runtime)(path, 1)(images)
    if not in_order:
        ours, theirs = (x.sort(dim=1).values for x in (out.pred_logits, logits))
        return float((ours - theirs).abs().max())
    pairs = ((out.pred_logits, logits), (out.pred_boxes, boxes))
    return max(float((ours - theirs).abs().max()) for ours, theirs in pairs)


def _drawn_scene() -> Tensor:
    image = torch.from_numpy(render_scene(3).image.copy())
    return image.permute(2, 0, 1).unsqueeze(0).float() / 255


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("fused", [False, True])
def test_outputs_on_a_drawn_scene(runtime: str, fused: bool, tmp_path: Path) -> None:
    detector = load_detector(package_file("weights/nano_roads.pt"))
    if fused:
        detector.fuse()
    scene = _drawn_scene()
    export_onnx(detector, tmp_path / "x.onnx", size=scene.shape[-2:])
    assert detector.is_fused == fused
    assert detector.backend == "auto"
    assert _difference(detector, scene, tmp_path / "x.onnx", runtime) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_outputs_on_a_photograph(runtime: str, aerial_root: Path, tmp_path: Path) -> None:
    detector = load_detector(package_file("weights/nano_roads.pt"))
    photograph = ImageReader().read(sorted((aerial_root / "images").iterdir())[0])
    images = torch.nn.functional.interpolate(
        photograph.float().div(255).unsqueeze(0), (384, 640), mode="bilinear", antialias=True
    )
    export_onnx(detector, tmp_path / "x.onnx", size=(384, 640))
    assert _difference(detector, images, tmp_path / "x.onnx", runtime) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("name", "overrides", "size", "batch_size"),
    [
        ("r18", [], (128, 160), 2),
        ("r18", ["pruner=early"], (64, 64), 1),  # 84 tokens, fewer than queries
        ("lite0", [], (96, 128), 3),
    ],
)
def test_models_sizes_and_batches(
    runtime: str,
    name: str,
    overrides: list[str],
    size: tuple[int, int],
    batch_size: int,
    tmp_path: Path,
) -> None:
    detector = build_detector(name, 5, overrides, pretrained=False).eval()
    export_onnx(detector, tmp_path / "x.onnx", size=size, batch_size=batch_size)
    images = torch.rand(batch_size, 3, *size)
    assert _difference(detector, images, tmp_path / "x.onnx", runtime, in_order=False) < 1e-4


def test_the_size_and_the_batch_are_fixed(tmp_path: Path) -> None:
    detector = build_detector("nano", 2, ["model.image_size=[64,96]"], pretrained=False).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_onnx(detector, tmp_path / "x.onnx")
    run = _network("onnxruntime")(tmp_path / "x.onnx", 1)
    for shape in [(2, 3, 64, 96), (1, 3, 96, 64), (1, 3, 64, 64)]:
        with pytest.raises(Exception, match=r"[Ii]nvalid dimensions"):
            run(torch.rand(shape))
    assert run(torch.rand(1, 3, 64, 96))[1].shape[-1] == 4


def test_what_cannot_be_exported_says_so_by_name(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    detector = build_detector("nano", 2, pretrained=False).eval()
    for size in [(100, 96), (64, 1), (33, 33)]:
        with pytest.raises(ValueError, match=f"multiples of 32, got {size[0]}x{size[1]}: pad"):
            export_onnx(detector, path, size=size)
    with pytest.raises(ValueError, match="batch_size"):
        export_onnx(detector, path, size=(64, 64), batch_size=0)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        with pytest.raises(ValueError, match=rf"float32, this one is {dtype}: call .float\(\)"):
            export_onnx(detector.to(dtype), path, size=(64, 64))
    with pytest.raises(NotImplementedError, match="experts cannot be exported"):
        export_onnx(build_detector("dset_r18", 2, pretrained=False), path, size=(64, 64))
    assert not path.exists()
