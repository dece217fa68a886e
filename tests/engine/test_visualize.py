from __future__ import annotations

import numpy as np
import pytest
import torch

from sparse_dset.engine.captions import caption_size, visible_text
from sparse_dset.engine.visualize import draw_detections
from sparse_dset.models.predict import Detections


def test_draws_boxes_and_darkens_what_was_pruned() -> None:
    image = torch.full((3, 64, 64), 200, dtype=torch.uint8)
    found = Detections(
        boxes=torch.tensor([[40.0, 40.0, 60.0, 60.0]]),
        scores=torch.tensor([0.9]),
        labels=torch.tensor([0]),
        names=["car"],
        kept=torch.tensor([[False, True], [True, True]]),
    )
    drawn = np.asarray(draw_detections(image, found))
    assert drawn.shape == (64, 64, 3)
    assert (drawn[:20, :20] == 90).all()
    assert (drawn[5, 60] == 200).all()
    assert (drawn[60, 50] != 200).any()
    plain = np.asarray(draw_detections(image, found, show_kept=False))
    assert (plain[:20, :20] == 200).all()


def _drawn(image: torch.Tensor, box: list[float], name: str) -> np.ndarray:
    height, width = image.shape[-2:]
    found = Detections(
        boxes=torch.tensor([box]),
        scores=torch.tensor([0.9]),
        labels=torch.tensor([0]),
        names=[name],
        kept=torch.ones(-(-height // 32), -(-width // 32), dtype=torch.bool),
        view_size=(height, width),
    )
    return np.asarray(draw_detections(image, found))


@pytest.mark.parametrize(
    ("size", "box", "name"),
    [
        ((100, 200), [20.0, 0.0, 60.0, 40.0], "car"),  # at the top edge
        ((100, 200), [190.0, 50.0, 200.0, 90.0], "car"),  # at the right edge
        ((100, 200), [199.0, 0.0, 200.0, 1.0], "a rather long name"),
        ((100, 60), [5.0, 50.0, 30.0, 90.0], "a name wider than its picture"),
        ((8, 8), [0.0, 0.0, 8.0, 8.0], "car"),
        ((1, 1), [0.0, 0.0, 1.0, 1.0], "a\nb"),
        ((100, 200), [0.0, 0.0, 0.0, 0.0], "车" * 200),
    ],
)
def test_captions_are_seen_whole(size, box, name) -> None:
    drawn = _drawn(torch.full((3, *size), 90, dtype=torch.uint8), box, name)
    width, height = caption_size(f"{visible_text(name)} 0.90")
    filled = (drawn == [0xE6, 0x19, 0x4B]).all(-1)
    written = (drawn == 255).all(-1)
    # The rectangle of the caption is filled but for what is written into it.
    rows, columns = np.nonzero(filled | written)
    assert columns.max() - columns.min() + 1 >= width
    assert rows.max() - rows.min() + 1 >= height
    assert written.sum() > 10
    assert filled.sum() > 0.3 * width * height


@pytest.mark.parametrize("size", [(8, 8), (100, 200)])
def test_different_names_are_different_pictures(size) -> None:
    image = torch.zeros(3, *size, dtype=torch.uint8)
    names = ["car", "bus", "车", "家", "a\nb", "a\\nb", "", "x" * 99, "x" * 98 + "y"]
    pictures = {_drawn(image, [0.0, 0.0, 8.0, 8.0], name).tobytes() for name in names}
    assert len(pictures) == len(names)


@pytest.mark.parametrize(
    ("size", "view_size", "edge"),
    [
        ((100, 100), (100, 100), 96),
        ((200, 200), (100, 100), 192),
        ((50, 50), (100, 100), 48),
        ((64, 192), (32, 96), 128),  # two of three columns
        ((10, 20), (17, 33), 19),
    ],
)
def test_cells_are_darkened_where_they_are_in_the_view(size, view_size, edge) -> None:
    cells = [-(-side // 32) for side in view_size]
    kept = torch.ones(*cells, dtype=torch.bool)
    kept[:, -1] = False
    found = Detections(
        boxes=torch.zeros(0, 4),
        scores=torch.zeros(0),
        labels=torch.zeros(0, dtype=torch.int64),
        names=[],
        kept=kept,
        view_size=view_size,
    )
    image = torch.full((3, *size), 200, dtype=torch.uint8)
    row = np.asarray(draw_detections(image, found))[0, :, 0]
    assert row.tolist() == [200] * edge + [90] * (size[1] - edge)
    turned = found | {"kept": kept.T, "view_size": view_size[::-1]}
    column = np.asarray(draw_detections(image.mT, turned))[:, 0, 0]
    assert column.tolist() == row.tolist()
    if size == view_size:
        del found["view_size"]
        assert np.asarray(draw_detections(image, found))[0, :, 0].tolist() == row.tolist()
