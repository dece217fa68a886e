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
)
_FREE = {"resume", "weights", *(f"train.{name}" for name in _TRAIN)}
# The same as `pruner` while training; scripts/calibrate.py changes it afterwards.
_COPY = "model.pruner."


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
        and not name.startswith(_COPY)
    }
