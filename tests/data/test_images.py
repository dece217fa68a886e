from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from sparse_dset.data.images import ImageReadError, read_image, read_size


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 8, 9])
def test_the_size_in_the_header_is_that_of_the_upright_picture(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"x.{suffix}"
    Image.new("RGB", (40, 100), (10, 200, 30)).save(path, exif=exif)
    assert read_size(path) == tuple(read_image(path).shape[1:])


@pytest.mark.parametrize(("kind", "suffix"), [("<u2", "tif"), (">u2", "tif"), ("<u2", "png")])
def test_sixteen_bits_are_scaled(tmp_path, kind, suffix):
    values = np.array([[0, 257, 65535], [300, 30000, 514]], dtype=kind)
    mode = "I;16B" if kind == ">u2" else "I;16"
    Image.frombytes(mode, (3, 2), values.tobytes()).save(tmp_path / f"x.{suffix}")
    expected = torch.tensor([[0, 1, 255], [1, 116, 2]], dtype=torch.uint8).expand(3, -1, -1)
    torch.testing.assert_close(read_image(tmp_path / f"x.{suffix}"), expected)


def test_floating_point_pixels_are_refused(tmp_path):
    Image.new("F", (5, 4), 0.5).save(tmp_path / "x.tif")
    with pytest.raises(ImageReadError, match=r"x.tif: its pixels are floating point"):
        read_image(tmp_path / "x.tif")
