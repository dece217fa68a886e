from __future__ import annotations

import pytest
import torch

from sparse_dset.models.decoder.memory import read_maps
from sparse_dset.models.decoder.queries import QuerySelection, make_anchors
from sparse_dset.structures import SparseMap, Support
from sparse_dset.structures.geometry import Geometry, cell_boxes

WIDTH = 8


def _geometry(*sizes, padded=(64, 320)):
    return Geometry(torch.tensor(sizes, dtype=torch.float32), padded, True)


def _memory(batch=2):
    maps = [torch.randn(batch, WIDTH, 64 // s, 320 // s) for s in (8, 16, 32)]
    return read_maps(maps, None)


def test_anchors_stand_at_the_centres_of_their_cells():
    geometry = _geometry((64, 320))
    sites = torch.tensor([[0, 0, 0, 35], [0, 1, 3, 0], [0, 2, 1, 9]])
    boxes = make_anchors(sites, geometry).unact.sigmoid()
    expected = [
        [35.5 / 40, 0.5 / 8, 0.05, 0.05],
        [0.5 / 20, 3.5 / 4, 0.1, 0.1],
        [9.5 / 10, 1.5 / 2, 0.2, 0.2],
    ]
    torch.testing.assert_close(boxes, torch.tensor(expected, dtype=torch.float64))


def test_x_varies_fastest():
    memory = _memory(1)
    centers = make_anchors(memory.sites, _geometry((64, 320))).unact.sigmoid()[:, :2]
    x, y = centers[:320].view(8, 40, 2).unbind(-1)
    assert (x.diff(dim=1) > 0).all()
    assert (x.diff(dim=0) == 0).all()
    assert (y.diff(dim=0) > 0).all()
    # The spot at x = 0.89, y = 0.1 lies in one cell of each level.
    boxes = cell_boxes(memory.sites, _geometry((64, 320)))
    inside = ((boxes[:, :2] - torch.tensor([0.89, 0.1])).abs() < boxes[:, 2:] / 2).all(1)
    assert memory.sites[inside].tolist() == [[0, 0, 0, 35], [0, 1, 0, 17], [0, 2, 0, 8]]


def test_boxes_are_relative_to_each_image():
    geometry = _geometry((64, 320), (40, 70))
    sites = torch.tensor([[0, 0, 4, 8], [1, 0, 4, 8]])
    cells = cell_boxes(sites, geometry)
    expected = [[8.5 / 40, 4.5 / 8, 1 / 40, 1 / 8], [8.5 / 8.75, 4.5 / 5, 1 / 8.75, 1 / 5]]
    torch.testing.assert_close(cells, torch.tensor(expected))
    anchors = make_anchors(sites, geometry).unact.sigmoid()[:, :2]
    torch.testing.assert_close(anchors.float(), cells[:, :2])


def test_anchors_at_the_border_are_not_valid():
    geometry = Geometry(torch.tensor([[64.0, 1024.0]]), (64, 1024), False)
    sites = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 127]])
    anchors = make_anchors(sites, geometry)
    assert anchors.valid.flatten().tolist() == [False, True, False]
    assert (anchors.unact[0] == torch.inf).all()
    assert anchors.unact[1].isfinite().all()


@pytest.mark.parametrize("lean", [False, True])
def test_the_best_rows_of_each_image_are_chosen(lean):
    selection, memory = QuerySelection(WIDTH, 3, 5, lean).eval(), _memory()
    geometry = Geometry(torch.tensor([[64.0, 320.0]] * 2), (64, 320), False)
    queries = selection.select_queries(memory, geometry)
    valid = make_anchors(memory.sites, geometry).valid
    rows = selection.enc_output(memory.rows * valid)
    scores = selection.enc_score_head(rows).amax(1)[memory.table]
    best = memory.table.gather(1, scores.topk(5, dim=1).indices)
    torch.testing.assert_close(queries.content, rows[best])
    torch.testing.assert_close(queries.logits.amax(-1), scores.topk(5, dim=1).values)
    assert queries.mask.all()


def test_images_with_fewer_rows_get_masked_queries():
    mask = torch.zeros(3, 2, 10, dtype=torch.bool)
    mask[0] = True
    mask[1, 1, 3] = True
    supports = [Support.from_mask(torch.zeros(3, 2 * f, 10 * f, dtype=torch.bool)) for f in (4, 2)]
    supports.append(Support.from_mask(mask))
    maps = [SparseMap(torch.randn(s.num_sites, WIDTH), s) for s in supports]
    geometry = Geometry(torch.tensor([[64.0, 320.0]] * 3), (64, 320), False)
    selection = QuerySelection(WIDTH, 3, 15, False)
    queries = selection.select_queries(read_maps(maps, None), geometry)
    assert queries.mask.sum(1).tolist() == [15, 1, 0]
    assert queries.boxes_unact.isfinite().all()
    assert not queries.content[~queries.mask].any()
