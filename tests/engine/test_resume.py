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
