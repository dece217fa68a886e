from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sparse_dset.config import compose_config
from sparse_dset.data.images import ImageReader, ImageReadError, read_size
from sparse_dset.instantiate import instantiate

READER = ImageReader()
BLUE = (0, 0, 255)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 8, 9])
def test_the_size_in_the_header_is_that_of_the_upright_picture(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"x.{suffix}"
    Image.new("RGB", (40, 100), (10, 200, 30)).save(path, exif=exif)
    assert read_size(path) == tuple(READER.read(path).shape[1:])


def save_16(path: Path, rows: Any, kind: str = "<u2", **options: Any) -> Path:
    """A picture of one channel with 16 bits."""
    values = np.array(rows, dtype=kind)
    mode = "I;16B" if kind == ">u2" else "I;16"
    Image.frombytes(mode, values.shape[::-1], values.tobytes()).save(path, **options)
    return path


@pytest.mark.parametrize(("kind", "suffix"), [("<u2", "tif"), (">u2", "tif"), ("<u2", "png")])
def test_sixteen_bits_are_scaled(tmp_path, kind, suffix):
    path = save_16(tmp_path / f"x.{suffix}", [[0, 257, 65535], [300, 30000, 514]], kind)
    expected = torch.tensor([[0, 1, 255], [1, 116, 2]], dtype=torch.uint8).expand(3, -1, -1)
    torch.testing.assert_close(READER.read(path), expected)


def test_floating_point_pixels_are_refused(tmp_path):
    Image.new("F", (5, 4), 0.5).save(tmp_path / "x.tif")
    with pytest.raises(ImageReadError, match=r"x.tif: its pixels are floating point"):
        READER.read(tmp_path / "x.tif")


@pytest.mark.parametrize("mode", ["L", "LA", "P", "PA", "RGBA", "RGBa", "La", "CMYK", "1", "YCbCr"])
def test_every_colour_mode_becomes_rgb(mode):
    source = Image.new("RGB", (6, 4), (255, 255, 255))
    for step in {"PA": ["P", "PA"], "La": ["LA", "La"], "RGBa": ["RGBA", "RGBa"]}.get(mode, [mode]):
        source = source.convert(step)
    image = READER.convert(source)
    assert image.dtype == torch.uint8
    assert image.shape == (3, 4, 6)
    assert (image == 255).all()


def _rgba(hidden: tuple[int, int, int]) -> Image.Image:
    """Left half opaque green, right half fully transparent."""
    picture = Image.new("RGBA", (4, 2), (0, 255, 0, 255))
    picture.paste((*hidden, 0), (2, 0, 4, 2))
    return picture


def _grey(hidden: tuple[int, int, int]) -> Image.Image:
    picture = Image.new("LA", (4, 2), (100, 255))
    picture.paste((hidden[0], 0), (2, 0, 4, 2))
    return picture


def _palette(hidden: tuple[int, int, int], **options: Any) -> tuple[Image.Image, dict[str, Any]]:
    picture = Image.new("P", (4, 2), 0)
    picture.putpalette([0, 255, 0, *hidden])
    picture.paste(1, (2, 0, 4, 2))
    return picture, options


def _drawn(mode: str, hidden: tuple[int, int, int]) -> tuple[Image.Image, dict[str, Any]]:
    if mode == "RGBA":
        return _rgba(hidden), {}
    if mode == "LA":
        return _grey(hidden), {}
    if mode == "P, index":
        return _palette(hidden, transparency=1)
    if mode == "P, bytes":
        return _palette(hidden, transparency=b"\xff\x00")
    if mode == "RGB":
        return _rgba(hidden).convert("RGB"), {"transparency": hidden}
    return _grey(hidden).convert("L"), {"transparency": hidden[0]}


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P, index", "P, bytes", "RGB", "L"])
@pytest.mark.parametrize("hidden", [(0, 0, 0), (255, 0, 0), (7, 8, 9)])
def test_hidden_colours_never_show(tmp_path, mode, hidden):
    picture, options = _drawn(mode, hidden)
    picture.save(tmp_path / "x.png", **options)
    image = ImageReader(background=BLUE).read(tmp_path / "x.png")
    assert image[:, :, 2:].flatten(1).unique(dim=1).flatten().tolist() == list(BLUE)
    shown = [100] * 3 if mode in ("LA", "L") else [0, 255, 0]
    assert image[:, 0, 0].tolist() == shown
    with Image.open(tmp_path / "x.png") as opened:
        assert torch.equal(ImageReader(background=BLUE).convert(opened), image)


def test_half_transparent_pixels_are_blended():
    picture = Image.new("RGBA", (2, 2), (255, 0, 0, 51))  # a fifth
    assert ImageReader(background=(0, 0, 100)).convert(picture)[:, 0, 0].tolist() == [51, 0, 80]
    assert READER.convert(picture)[:, 0, 0].tolist() == [255, 204, 204]


def test_palettes_with_an_alpha_channel_are_composed():
    picture = _rgba((255, 0, 0)).quantize().convert("PA")
    picture.putalpha(_rgba((0, 0, 0)).getchannel("A"))
    assert ImageReader(background=BLUE).convert(picture)[:, 0, 3].tolist() == list(BLUE)


def png_file(path: Path, bits: int, colour: int, row: bytes, width: int, key: bytes) -> Path:
    """A PNG of one row with a transparent key (tRNS), of any number of bits a channel."""

    def chunk(name: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, 1, bits, colour, 0, 0, 0)
    body = zlib.compress(b"\0" + row)
    chunks = [
        chunk(b"IHDR", header),
        chunk(b"tRNS", key),
        chunk(b"IDAT", body),
        chunk(b"IEND", b""),
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    return path


@pytest.mark.parametrize(
    ("bits", "colour", "row", "key", "first"),
    [
        (1, 0, b"\x40", (0,), 255),  # second pixel white, first one transparent
        (2, 0, b"\x60", (1,), 170),  # values 1, 2
        (4, 0, b"\x3c", (3,), 204),  # values 3, 12
        (8, 0, bytes([3, 200]), (3,), 200),
        (16, 0, struct.pack(">HH", 500, 257 * 90), (500,), 90),
        (8, 2, bytes([9, 8, 7, 50, 50, 50]), (9, 8, 7), 50),
        (16, 2, struct.pack(">6H", 65535, 0, 300, 2570, 2570, 2570), (65535, 0, 300), 10),
    ],
)
def test_transparent_keys_of_any_depth(tmp_path, bits, colour, row, key, first):
    path = png_file(tmp_path / "x.png", bits, colour, row, 2, struct.pack(f">{len(key)}H", *key))
    image = ImageReader(background=BLUE).read(path)
    assert image[:, 0, 0].tolist() == list(BLUE)
    assert image[:, 0, 1].tolist() == [first] * 3


def _several(path: Path, count: int = 3, **options: Any) -> Path:
    pictures = [Image.new("RGB", (8, 8), (60 * i, 0, 0)) for i in range(count)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], **options)
    return path


@pytest.mark.parametrize(
    ("name", "word"),
    [("x.tif", "pages"), ("x.gif", "frames"), ("x.png", "frames"), ("x.webp", "frames")],
)
def test_files_with_several_pictures_are_told(tmp_path, name, word):
    path = _several(tmp_path / name, lossless=True)
    with pytest.warns(UserWarning, match=rf"{name} has 3 {word}, of which the first") as caught:
        image = READER.read(path)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert (image == 0).all()


def test_one_picture_is_not_told_of(tmp_path):
    paths = [_several(tmp_path / f"x.{suffix}", 1) for suffix in ("tif", "gif", "png", "webp")]
    preview = {"append_images": [Image.new("RGB", (4, 4))], "save_all": True}
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.mpo", **preview)
    pyramid = tmp_path / "pyramid.tif"
    small = Image.new("RGB", (4, 4))
    small.encoderinfo = {"tiffinfo": {254: 1}}  # a smaller version of another page
    Image.new("RGB", (8, 8)).save(pyramid, save_all=True, append_images=[small])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path in [*paths, tmp_path / "photo.mpo", pyramid]:
            READER.read(path)


@pytest.mark.parametrize("values", [[[0, 4095]], [[1000, 1023]], [[30000, 46000]]])
def test_narrow_ranges_are_told_and_stretched(tmp_path, values):
    path = save_16(tmp_path / "x.png", values)
    low, high = values[0]
    with pytest.warns(UserWarning, match=rf"x\.png: its values lie in {low}\.\.{high}.*stretch"):
        READER.read(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ImageReader(stretch=True).read(path)[0].tolist() == [[0, 255]]
    with pytest.warns(UserWarning, match="its values lie in"):
        assert READER.convert(Image.open(path))[0].tolist() == [[low // 257, high // 257]]


@pytest.mark.parametrize("values", [[[0, 65535]], [[500, 20000]], [[700, 700]]])
def test_wide_and_even_ranges_are_not_told_of(tmp_path, values):
    path = save_16(tmp_path / "x.png", values)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        READER.read(path)


def test_pictures_with_eight_bits_are_not_stretched(tmp_path):
    Image.new("L", (4, 4), 30).save(tmp_path / "x.png")
    assert (ImageReader(stretch=True).read(tmp_path / "x.png") == 30).all()


@pytest.mark.parametrize("values", [[0, 65536], [0, 2**31 - 1], [-1, 100], [-500, -1]])
def test_integers_out_of_sixteen_bits_are_refused_or_stretched(tmp_path, values):
    path = tmp_path / "x.tif"
    Image.fromarray(np.array([values], dtype=np.int32)).save(path)
    with pytest.raises(ImageReadError, match=rf"x\.tif.*{values[0]}\.\.{values[1]}.*stretch=true"):
        READER.read(path)
    assert ImageReader(stretch=True).read(path)[0].tolist() == [[0, 255]]


@pytest.mark.parametrize("sample_format", [None, 1])
def test_unsigned_integers_of_32_bits_stay_so(tmp_path, sample_format):
    values = struct.pack("<3I", 0, 2**31 + 5, 2**32 - 1)
    tags = [(256, 3), (257, 1), (258, 32), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1)]
    tags += [(279, 12)] + ([(339, sample_format)] if sample_format else [])
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    head = struct.pack("<2sHI", b"II", 42, 8 + len(values))
    path = tmp_path / "x.tif"
    path.write_bytes(head + values + struct.pack("<H", len(tags)) + entries + bytes(4))
    assert ImageReader(stretch=True).read(path)[0].tolist() == [[0, 127, 255]]
    with pytest.raises(ImageReadError, match=r"values lie in 0\.\.4294967295, outside"):
        READER.read(path)


def _header_of(size: tuple[int, int], path: Path) -> Path:
    """A PNG of one colour, whose pixels are never needed as an array here."""
    Image.new("1", size).save(path)
    return path


@pytest.mark.slow
def test_large_pictures_are_read(tmp_path):
    path = _header_of((12000, 7600), tmp_path / "large.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert READER.read(path).shape == (3, 7600, 12000)
        assert read_size(path) == (7600, 12000)


def test_the_limit_is_a_setting_and_not_pillows(tmp_path, monkeypatch):
    path = _header_of((40, 30), tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # what Pillow itself would refuse
    assert READER.read(path).shape == (3, 30, 40)
    assert Image.MAX_IMAGE_PIXELS == 100
    message = r"40x30 pixels.*max_pixels=1199;.*data\.reader\.max_pixels=1200"
    with pytest.raises(ImageReadError, match=message):
        ImageReader(max_pixels=1199).read(path)
    assert ImageReader(max_pixels=1200).read(path).shape == (3, 30, 40)
    with pytest.raises(ValueError, match=message):
        ImageReader(max_pixels=1199).convert(Image.new("L", (40, 30)))


def test_the_default_limit_refuses_a_header_that_promises_too_much(tmp_path):
    png = io.BytesIO()
    Image.new("L", (2, 2)).save(png, "PNG")
    broken = bytearray(png.getvalue())
    broken[16:24] = struct.pack(">II", 60000, 60000)
    broken[29:33] = struct.pack(">I", zlib.crc32(bytes(broken[12:29])))
    (tmp_path / "x.png").write_bytes(bytes(broken))
    with pytest.raises(ImageReadError, match=r"60000x60000 pixels are more than max_pixels"):
        READER.read(tmp_path / "x.png")


@pytest.mark.parametrize("option", ["coco", "synthetic", "aerial"])
@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], ImageReader()),  # the defaults of conf/ and of Python are the same
        (["data.reader.max_pixels=9"], ImageReader(max_pixels=9)),
        (
            ["data.reader.stretch=true", "data.reader.background=[0,0,255]"],
            ImageReader(stretch=True, background=BLUE),
        ),
    ],
)
def test_the_reader_is_set_on_the_command_line(option, overrides, expected):
    plain = compose_config("train", [f"data={option}", "data.root=/x", *overrides])["data"]
    for part in (plain["train"].get("dataset", plain["train"]), plain["val"]):
        assert instantiate(part["reader"]) == expected


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"background": "white"}, "background"),
        ({"background": (0, 0, 256)}, "background"),
        ({"background": (0, 0)}, "background"),
        ({"max_pixels": 0}, "max_pixels"),
        ({"stretch": "yes"}, "stretch"),
    ],
)
def test_settings_out_of_range_are_refused(settings, name):
    with pytest.raises(ValueError, match=name):
        ImageReader(**settings)
