from __future__ import annotations

import pytest
import torch

from sparse_dset.structures.pixels import as_pixels

IMAGE = torch.rand(3, 9, 7, generator=torch.Generator().manual_seed(0))
MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (IMAGE * 2 - 1, r"minimum of -0\.9\d* and a maximum of 0\.9\d*; .* by \(x \+ 1\) / 2"),
        (IMAGE * 0.8 - 0.4, r"minimum of -0\.39\d* .* by \(x \+ 1\) / 2"),
        ((IMAGE - MEAN) / STD, r"minimum of -2.* undo it by x \* std \+ mean"),
        ((torch.ones(3, 9, 7) - MEAN) / STD, r"maximum of 2\.6.* undo it by x \* std \+ mean"),
        (IMAGE * 255, "maximum of 25.*; divide by 255, or give uint8"),
        (IMAGE * 65535, "; divide by 65535"),
        (IMAGE * 1.4, "maximum of 1.3"),
        (IMAGE.half() * 100, "divide by 255"),
        (torch.full((3, 9, 7), torch.nan), "minimum of nan.* NaN or infinite"),
        (torch.where(IMAGE > 0.9, torch.inf, IMAGE), "maximum of inf: .* NaN or infinite"),
        (torch.where(IMAGE > 0.9, -torch.inf, IMAGE), "minimum of -inf.* NaN or infinite"),
        ((IMAGE * 255).int(), r"got torch.int32: its values fit, so give x.to\(torch.uint8\)"),
        ((IMAGE * 255).to(torch.uint16), r"got torch.uint16: .* x.to\(torch.uint8\)"),
        ((IMAGE * 65535).int(), "its values reach 6.* x / 65535"),
        ((IMAGE * 100).to(torch.int8) - 100, r"got torch.int8: its values are in -100\.\.-"),
        (IMAGE > 0.5, "got torch.bool: a mask is no picture"),
        (IMAGE.cfloat(), "complex values are no pixels"),
        (IMAGE.to("meta"), "on the device 'meta' holds none"),
        (IMAGE.to_sparse(), r"got torch.sparse_coo: give x.to_dense\(\)"),
    ],
)
def test_what_cannot_be_pixels_is_refused_with_the_mend(image, message) -> None:
    with pytest.raises(ValueError, match=message):
        as_pixels(image)


@pytest.mark.parametrize(
    ("shape", "mend"),
    [
        ((9, 7, 3), r"its channels come last: give x.permute\(2, 0, 1\)"),
        ((1, 9, 7), r"grey .* give x.expand\(3, -1, -1\)"),
        ((2, 9, 7), "opacity"),
        ((4, 9, 7), "opacity"),
        ((9, 7), r"grey .* give x.expand\(3, -1, -1\)"),
        ((2, 3, 9, 7), r"list\(x\)"),
        ((3, 0, 7), r"\(3, 0, 7\)$"),
        ((6, 9, 7), r"\(6, 9, 7\)$"),
        ((), r"\(\)$"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_other_shapes_are_refused_with_the_mend(shape, mend, dtype) -> None:
    with pytest.raises(ValueError, match=rf"must be \[3, H, W\], got .*{mend}"):
        as_pixels(torch.zeros(shape, dtype=dtype))


def test_pixels_stay_as_they_are() -> None:
    assert torch.equal(as_pixels(IMAGE), IMAGE)
    assert as_pixels((IMAGE * 255).byte()).dtype == torch.uint8
    assert as_pixels(IMAGE.double()).dtype == torch.float32


def test_the_overshoot_of_resizing_is_cut_off() -> None:
    edge = torch.zeros(1, 3, 8, 8)
    edge[..., 4:] = 1.0
    resized = torch.nn.functional.interpolate(edge, (31, 31), mode="bicubic", antialias=True)[0]
    assert resized.max() > 1.05
    pixels = as_pixels(resized)
    assert (pixels.amin(), pixels.amax()) == (0, 1)
