from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.ops import box_convert

from sparse_dset import build_detector
from sparse_dset.data.coco import CocoDetection
from sparse_dset.data.images import ImageReader, ImageReadError
from sparse_dset.data.view import View
from sparse_dset.engine.evaluate import detect, evaluation_loader
from sparse_dset.models.detector import Detector


@pytest.fixture(scope="module")
def model() -> Detector:
    torch.manual_seed(0)
    overrides = ["model.image_size=[64,96]", "model.class_names=[car,bus]"]
    return build_detector("nano", 2, overrides, pretrained=False)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "wide.jpg"
    Image.new("RGB", (200, 50), (40, 90, 10)).save(path)
    return path


def test_boxes_are_pixels_of_each_picture(model: Detector, picture: Path) -> None:
    model.train()
    square = Image.new("RGB", (30, 30))
    wide, small = model.predict([picture, square], threshold=0.0)
    assert model.training
    assert wide["boxes"][:, 0::2].max() <= 200
    assert wide["boxes"][:, 1::2].max() <= 50
    assert wide["boxes"][:, 0::2].max() > 50
    assert small["boxes"].max() <= 30
    assert set(wide["names"]) <= {"car", "bus"}
    assert (wide["scores"].diff() <= 0).all()
    assert wide["kept"].shape == (2, 3)


def test_a_file_an_image_and_a_tensor_give_the_same(model: Detector, picture: Path) -> None:
    image = Image.open(picture)
    tensor = torch.tensor(list(image.getdata()), dtype=torch.uint8).view(50, 200, 3)
    found = model.predict([picture, image, tensor.permute(2, 0, 1)], threshold=0.0)
    for other in found[1:]:
        torch.testing.assert_close(other["boxes"], found[0]["boxes"])


def test_an_open_picture_gives_what_its_file_gives(model: Detector, tmp_path: Path) -> None:
    pixels = torch.randint(256, (60, 40, 3), dtype=torch.uint8).numpy()
    sideways = Image.Exif()
    sideways[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=sideways)
    grey = torch.randint(65536, (60, 40)).numpy().astype("uint16")
    Image.fromarray(grey).save(tmp_path / "deep.png")
    for path in (tmp_path / "turned.png", tmp_path / "deep.png"):
        from_file, opened = model.predict([path, Image.open(path)], threshold=0.0)
        torch.testing.assert_close(opened["scores"], from_file["scores"])
        torch.testing.assert_close(opened["boxes"], from_file["boxes"])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(3, 9, 9, dtype=torch.int64), "uint8 or float, got torch.int64"),
        (torch.full((3, 9, 9), 200.0), "maximum of 200; divide by 255"),
        (torch.zeros(1, 9, 9), r"\[3, H, W\], got \(1, 9, 9\); grey .* x.expand"),
        (torch.rand(3, 9, 9) * 2 - 1, r"minimum of -0.9.* by \(x \+ 1\) / 2"),
        (torch.zeros(3, 9, 9).numpy(), "a path, a PIL image or a tensor, got a ndarray"),
    ],
)
def test_what_is_no_image_is_refused(model: Detector, image, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.predict([image])


def test_what_is_no_number_is_not_nothing(model: Detector) -> None:
    broken = copy.deepcopy(model)
    next(broken.encoder.parameters()).data.fill_(torch.nan)
    with pytest.raises(RuntimeError, match="scores or boxes of Tensor are not finite"):
        broken.predict([torch.zeros(3, 40, 40)], execution="dense")


@pytest.mark.parametrize("call", ["forward", "score_tokens"])
def test_the_forward_pass_warns_of_what_cannot_be_pixels(model: Detector, call: str) -> None:
    image = torch.rand(1, 3, 40, 40)
    run = getattr(model.eval(), call)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(image)
    for wrong in (image * 2 - 1, image * 255, (image - 0.45) / 0.22):
        with pytest.warns(UserWarning, match=r"must be in \[0, 1\], got a minimum of"):
            run(wrong)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_floating_type_of_pixels_is_taken(model: Detector, dtype: torch.dtype) -> None:
    image = torch.randint(256, (3, 50, 70)) / 255
    (wanted,) = model.predict([image.to(dtype).float()], threshold=0.0)
    (found,) = model.predict([image.to(dtype)], threshold=0.0)
    assert torch.equal(found["boxes"], wanted["boxes"])


def test_weights_in_another_precision(model: Detector, picture: Path) -> None:
    (expected,) = model.predict([picture], threshold=0.0)
    double = copy.deepcopy(model).double()
    (found,) = double.predict([picture], threshold=0.0)
    torch.testing.assert_close(found["boxes"].float(), expected["boxes"], rtol=1e-3, atol=1e-2)
    for narrow in (copy.deepcopy(model).bfloat16(), copy.deepcopy(model).fuse().bfloat16()):
        for execution in ("dense", "sparse"):
            (found,) = narrow.predict([picture], threshold=0.0, execution=execution)
            assert torch.isfinite(found["boxes"]).all()


def test_threshold_cuts(model: Detector, picture: Path) -> None:
    (everything,) = model.predict([picture], threshold=0.0)
    middle = everything["scores"].median().item()
    (some,) = model.predict([picture], threshold=middle)
    assert len(some["boxes"]) == len(some["names"]) == int((everything["scores"] >= middle).sum())


def test_options_reach_the_forward_pass(model: Detector, picture: Path) -> None:
    (found,) = model.predict([picture], keep_ratio=0.5, execution="sparse")
    assert found["kept"].sum() == 3


def test_errors_name_what_is_wrong(model: Detector, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    with pytest.raises(ImageReadError, match="broken.jpg"):
        model.predict([broken])
    with pytest.raises(ValueError, match="list"):
        model.predict("photo.jpg")
    with pytest.raises(ValueError, match="threshold"):
        model.predict([broken], threshold=2.0)


def test_no_pictures(model: Detector) -> None:
    assert model.predict([]) == []


def test_pictures_of_different_types_do_not_change_each_other(model: Detector) -> None:
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    (alone,) = model.predict([image], threshold=0.0)
    mixed, _ = model.predict([image, image.float() / 255], threshold=0.0)
    torch.testing.assert_close(mixed["scores"], alone["scores"])


def test_every_module_keeps_its_mode(model: Detector, picture: Path) -> None:
    model.train()
    model.encoder.eval()
    model.predict([picture])
    assert model.decoder.training
    assert not model.encoder.training


def _coco(folder: Path, sizes: list[tuple[int, int]]) -> CocoDetection:
    """A data set of pictures of noise, of which each has one box."""
    images, boxes = [], []
    for i, (height, width) in enumerate(sizes):
        pixels = torch.randint(256, (height, width, 3), dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(folder / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "height": height, "width": width})
        box = {"id": i + 1, "image_id": i, "category_id": 1, "bbox": [0, 0, width, height]}
        boxes.append(box)
    categories = [{"id": 1, "name": "car"}, {"id": 2, "name": "bus"}]
    path = folder / "instances.json"
    path.write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))
    return CocoDetection(folder, path)


@pytest.mark.parametrize(
    "view",
    [
        View((64, 96)),
        View((96, 96), "letterbox"),
        View((65, 97)),
        View((101, 75), "letterbox"),
    ],
    ids=str,
)
@pytest.mark.parametrize("execution", ["dense", "sparse"])
@pytest.mark.parametrize("batch_size", [1, 6])
def test_what_is_found_is_what_an_evaluation_finds(
    model: Detector, tmp_path: Path, view: View, execution: str, batch_size: int
) -> None:
    model = copy.deepcopy(model)
    model.view = view
    data = _coco(tmp_path, [(64, 192), (200, 31), (37, 53), (1, 1), (3, 90), (96, 96)])
    data.transforms = view
    evaluator, _ = detect(
        model, evaluation_loader(data, batch_size), data, execution=execution, progress=False
    )
    paths = [record.path for record in data.records]
    found = model.predict(paths, threshold=0.0, batch_size=batch_size, execution=execution)
    for record, one in zip(data.records, found, strict=True):
        expected = evaluator._detections[record.image_id]
        assert one["scores"].double().tolist() == expected.scores.tolist()
        assert one["boxes"].double().tolist() == expected.boxes.tolist()
        assert one["labels"].tolist() == expected.labels.tolist()
        height, width = view.size_of(*record.size)
        assert one["view_size"] == (height, width)
        assert one["kept"].shape == (-(-height // 32), -(-width // 32))


def test_a_letterboxed_picture_is_not_stretched(model: Detector) -> None:
    model = copy.deepcopy(model)
    model.view = View((96, 96), "letterbox")
    seen = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((args[0].shape, kwargs)), with_kwargs=True
    )
    wide, tall = torch.zeros(2, 3, 64, 192, dtype=torch.uint8).unbind()
    model.predict([wide, tall.mT])
    shape, options = seen[0]
    assert shape == (2, 3, 96, 96)
    kept = (~options["padding_mask"]).flatten(1).sum(1)
    assert kept.tolist() == [32 * 96, 96 * 32]


def test_boxes_of_a_letterboxed_picture_are_relative_to_the_picture(model: Detector) -> None:
    model = copy.deepcopy(model).eval()
    model.view = View((96, 96), "letterbox")
    wide = torch.randint(256, (3, 64, 192), dtype=torch.uint8)
    (found,) = model.predict([wide], threshold=0.0, execution="dense")
    out = model(model.view.resized(wide)[None] / 255, execution="dense")
    boxes = box_convert(out.pred_boxes[0], "cxcywh", "xyxy") * torch.tensor([192, 64] * 2)
    best = out.pred_logits[0].amax(1).argmax()
    limits = torch.tensor([192.0, 64.0] * 2)
    expected = torch.minimum(boxes[best].clamp(min=0), limits)
    torch.testing.assert_close(found["boxes"][0], expected, rtol=0, atol=1e-3)


def test_the_most_detections_are_a_setting(model: Detector) -> None:
    picture = torch.randint(256, (3, 64, 96), dtype=torch.uint8)
    (all_of_them,) = model.predict([picture], threshold=0.0, max_detections=10_000)
    (some,) = model.predict([picture], threshold=0.0, max_detections=7)
    assert len(some["boxes"]) == len(some["names"]) == 7
    assert torch.equal(some["boxes"], all_of_them["boxes"][:7])
    with pytest.raises(ValueError, match="max_detections must be a whole number of at least 1"):
        model.predict([picture], max_detections=0)


def test_the_size_is_a_setting_of_the_model_alone() -> None:
    model = build_detector("nano", 2, ["model.image_size=[64,96]"], pretrained=False)
    assert model.view == View((64, 96))
    model.view = View((64, 96), "letterbox")
    model.image_size = (32, 32)
    assert model.view == View((32, 32), "letterbox")
    view = "{_target_:sparse_dset.data.view.View,size:[32,64],mode:letterbox}"
    given = build_detector("nano", 2, [f"model.view={view}"], pretrained=False)
    assert given.view == View((32, 64), "letterbox")
    assert given.image_size == (32, 64)


def test_files_are_read_as_those_of_the_validation(model: Detector, tmp_path: Path) -> None:
    model = copy.deepcopy(model)
    clear = Image.new("RGBA", (60, 40), (200, 30, 30, 0))
    clear.save(tmp_path / "0.png")
    for background in ((255, 255, 255), (0, 0, 0), (9, 80, 200)):
        model.view = View((64, 96), reader=ImageReader(background=background))
        plain = torch.tensor(background, dtype=torch.uint8)[:, None, None].expand(3, 40, 60)
        from_file, opened, wanted = model.predict([tmp_path / "0.png", clear, plain], 0.0)
        for found in (from_file, opened):
            torch.testing.assert_close(found["scores"], wanted["scores"])
    model.view = View((64, 96), reader=ImageReader(max_pixels=100))
    with pytest.raises(ImageReadError, match="max_pixels=100"):
        model.predict([tmp_path / "0.png"])
