"""What must be as it was where a run goes on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sparse_dset.config import leaves

# Where things lie, and how a run is watched, stopped and spread: what is learnt does not depend on
# it.
_PATHS = ("root", "annotations")
_TRAIN = (
    *("output_dir", "num_workers", "threads", "device", "progress_bar", "log_every"),
    *("save_every_steps", "eval_every", "eval_batch_size", "patience", "max_steps", "max_minutes"),
)
_FREE = {"resume", "weights", *(f"train.{name}" for name in _TRAIN)}


def changed_settings(now: Mapping[str, Any], then: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Compares the configurations of a run and of the checkpoint that it is to go on from.

    Returns:
        By dotted name, (now, then) of the settings that bear on what is learnt and differ; None for
        one that is not there.
    """
    ours, theirs = dict(_lasting(now)), dict(_lasting(then))
    return {
        name: (ours.get(name), theirs.get(name))
        for name in {**ours, **theirs}
        if ours.get(name) != theirs.get(name)
    }


def _lasting(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in leaves(dict(config)):
        if name not in _FREE and name.rpartition(".")[2] not in _PATHS:
            yield name, list(value) if isinstance(value, tuple) else value
