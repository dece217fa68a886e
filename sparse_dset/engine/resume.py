"""What must be as it was where a run goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparse_dset.composition import leaves

# Where things lie, and how a run is watched, stopped and spread: what is learnt does not depend on
# it.
_PATHS = ("root", "annotations")
_TRAIN = (
    *("output_dir", "num_workers", "threads", "device", "progress_bar", "log_every"),
    *("save_every_steps", "eval_every", "eval_batch_size", "patience", "max_steps", "max_minutes"),
    "max_detections",
)
_FREE = {"resume", "weights", "ops.costs", *(f"train.{name}" for name in _TRAIN)}
# `pruner` and the view of `data.val` again; scripts/calibrate.py changes the former afterwards.
_VIEW = "data.val.transforms."
# Runs of before wrote the same view in these other words.
_SAME_VIEW = (
    (f"{_VIEW}_target_", "sparse_dset.data.transforms.eval_transforms"),
    (f"{_VIEW}_target_", "sparse_dset.data.view.View"),
    (f"{_VIEW}mode", "fixed"),
    (f"{_VIEW}mode", "stretch"),
)
# How pictures were read before that was a setting.
_SAME_READER = (
    ("_target_", "sparse_dset.data.images.ImageReader"),
    ("background", [255, 255, 255]),
    ("stretch", False),
)
_COPIES = ("model.pruner.", "model.view.", "data.view.")


def changed_settings(now: Mapping[str, Any], then: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Compares the configurations of a run and of the checkpoint that it is to go on from.

    Returns:
        By dotted name, (now, then) of the settings that bear on what is learnt and differ; None for
        one that is not there.
    """
    ours, theirs = lasting_settings(now), lasting_settings(then)
    if now.get("weights_name") is None:  # whoever goes on need not say again where it began
        theirs.pop("weights_name", None)
    return {
        name: (ours.get(name), theirs.get(name))
        for name in {**ours, **theirs}
        if ours.get(name) != theirs.get(name)
    }


def lasting_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns, by dotted name, the settings of a training that bear on what is learnt."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in leaves(dict(config))
        if name not in _FREE
        and name.rpartition(".")[2] not in _PATHS
        and not name.startswith(_COPIES)
        and (name, value) not in _SAME_VIEW
        and not _is_usual_reading(name, value)
    }


def _is_usual_reading(name: str, value: Any) -> bool:
    """Whether a setting of an ``ImageReader`` is the usual one, or changes no picture."""
    holder, _, key = name.rpartition(".")
    if holder.rpartition(".")[2] != "reader":
        return False
    return key == "max_pixels" or (key, value) in _SAME_READER
