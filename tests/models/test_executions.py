from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparse_dset.models.executions import DENSE, EXECUTIONS, NAMES, SPARSE, Sparse, find_execution
from sparse_dset.structures import MaskedMap, SparseMap, Support
from sparse_dset.structures.geometry import pad_batch
from sparse_dset.structures.tables import PLAIN_TABLES
from tests.models.detectors import make_detector


class Halved(Sparse):
    """An execution of somebody else: every other kept token of the finest level goes too."""

    name = "halved"

    def place(self, features, kept, valid, geometry, tables):
        maps = super().place(features, kept, valid, geometry, tables)
        mask = maps[0].support.mask()
        mask[..., ::2] = False
        return [SparseMap.from_dense(features[0], Support.from_mask(mask, tables)), *maps[1:]]


def test_a_name_is_found_and_an_object_is_itself() -> None:
    assert NAMES == ("dense", "dense_scatter", "sparse", "masked", "auto")
    for name, execution in zip(NAMES, EXECUTIONS, strict=True):
        assert find_execution(name) is execution
    own = Halved()
    assert find_execution(own) is own
    with pytest.raises(ValueError, match="one of dense, dense_scatter, sparse, masked, auto; got"):
        find_execution("fast")


def test_what_each_leaves_out() -> None:
    pruned = {e.name: tuple(e.pruned_levels([2])) for e in EXECUTIONS}
    whole = (0, 1, 2)
    assert pruned == {
        "dense": (),
        "dense_scatter": (2,),
        "sparse": whole,
        "masked": whole,
        "auto": whole,
    }
    assert [e.name for e in EXECUTIONS if not e.prunes] == ["dense"]


def _masks(kept: float) -> list[Tensor]:
    coarse = torch.rand(1, 2, 3) < kept
    return [coarse.repeat_interleave(s, 1).repeat_interleave(s, 2) for s in (4, 2, 1)]


def test_auto_becomes_what_is_faster() -> None:
    auto, valid = find_execution("auto"), _masks(2.0)
    assert auto.before_decision(keeps_all=True) is DENSE
    assert auto.before_decision(keeps_all=False) is auto
    assert auto.after_decision(valid, valid) is DENSE
    assert auto.after_decision(_masks(0.0), valid) is SPARSE
    for execution in EXECUTIONS[:-1]:
        assert execution.before_decision(True) is execution.after_decision(valid, valid)


def test_the_kinds_of_maps() -> None:
    valid, kept = _masks(2.0), _masks(0.5)
    features = [torch.rand(1, 4, *mask.shape[1:]) for mask in valid]
    geometry = pad_batch(torch.rand(1, 3, 64, 96), None)[1]
    kinds = {}
    for execution in EXECUTIONS:
        pruned = execution.pruned_levels([2])
        own = [k if i in pruned else v for i, (k, v) in enumerate(zip(kept, valid, strict=True))]
        maps = execution.place(features, own, valid, geometry, PLAIN_TABLES)
        kinds[execution.name] = [type(m) for m in maps]
        into_neck = execution.before_neck(maps, valid, geometry, PLAIN_TABLES)
        assert all(isinstance(m, Tensor) for m in into_neck) == (execution.name[:5] == "dense")
        expected = features[2] * own[2]
        last = into_neck[2] if isinstance(into_neck[2], Tensor) else into_neck[2].to_dense()
        assert torch.equal(last, expected)
    assert kinds == {
        "dense": [Tensor] * 3,
        "dense_scatter": [Tensor, Tensor, SparseMap],
        "sparse": [SparseMap] * 3,
        "masked": [MaskedMap] * 3,
        "auto": [SparseMap] * 3,
    }


@pytest.mark.parametrize("stage", ["pruner=default", "pruner=early"])
def test_an_execution_from_outside_runs(stage: str) -> None:
    model = make_detector("nano", stage)
    images = torch.rand(2, 3, 64, 96, dtype=torch.float64)
    out = model(images, execution=Halved(), keep_ratio=0.5)
    usual = model(images, execution="sparse", keep_ratio=0.5)
    assert out.execution == "halved"
    assert torch.equal(out.kept[2], usual.kept[2])
    assert out.pred_boxes.isfinite().all()
    # An early decision goes on at its sites, and places nothing afterwards.
    assert torch.equal(out.pred_boxes, usual.pred_boxes) == (stage == "pruner=early")
