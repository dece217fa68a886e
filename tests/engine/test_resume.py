from __future__ import annotations

from sparse_dset.engine.resume import changed_settings

THEN = {
    "pruner": {"selector": "batch"},
    "model": {"width": 8, "pruner": {"selector": "batch"}},
    "train": {"seed": 0, "output_dir": "a"},
    "weights": "a.pt",
    "weights_name": "0123",
}


def test_what_is_learnt_by_is_compared():
    now = {**THEN, "train": {"seed": 1, "output_dir": "b"}, "model": {"width": 9}}
    assert changed_settings(now, THEN) == {"train.seed": (1, 0), "model.width": (9, 8)}


def test_a_calibrated_checkpoint_goes_on():
    calibrated = {**THEN, "model": {"width": 8, "pruner": {"selector": "threshold"}}}
    assert changed_settings(THEN, calibrated) == {}


def test_other_weights_are_another_start():
    assert changed_settings({**THEN, "weights_name": "4567"}, THEN) == {
        "weights_name": ("4567", "0123")
    }
    assert changed_settings({**THEN, "weights": None, "weights_name": None}, THEN) == {}


def _with_view(**transforms):
    return {**THEN, "data": {"val": {"root": "x", "transforms": transforms}}}


def test_the_same_view_in_other_words_is_no_change():
    then = _with_view(_target_="sparse_dset.data.transforms.eval_transforms", size=[64, 96])
    now = _with_view(_target_="sparse_dset.data.view.View", size=[64, 96], mode="stretch")
    now["data"]["view"] = {"mode": "stretch"}
    now["model"] = {**now["model"], "view": {"mode": "stretch"}}
    assert changed_settings(now, then) == {}
    fitted = _with_view(_target_="sparse_dset.data.view.View", size=[64, 96], mode="letterbox")
    assert changed_settings(fitted, then) == {"data.val.transforms.mode": ("letterbox", None)}
    larger = _with_view(_target_="sparse_dset.data.view.View", size=[96, 96], mode="stretch")
    assert changed_settings(larger, then) == {"data.val.transforms.size": ([96, 96], [64, 96])}


def test_the_usual_reading_of_pictures_is_no_change():
    usual = {
        "_target_": "sparse_dset.data.images.ImageReader",
        "background": [255, 255, 255],
        "stretch": False,
        "max_pixels": 9,
    }
    then = {**THEN, "data": {"train": {"root": "x"}}}
    now = {**THEN, "data": {"reader": usual, "train": {"root": "x", "reader": usual}}}
    assert changed_settings(now, then) == {}
    now["data"]["train"]["reader"] = {**usual, "background": [0, 0, 0]}
    assert changed_settings(now, then) == {"data.train.reader.background": ([0, 0, 0], None)}
