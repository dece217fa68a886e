"""Configurations in checkpoints of before, in today's form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_MADE_BY_THE_DETECTOR = "sparse_dset.losses.losses.make_losses"
_MOVED = {
    "sparse_dset.engine.train.TrainConfig": "sparse_dset.engine.train_config.TrainConfig",
    "sparse_dset.engine.train.PruningSchedule": "sparse_dset.engine.train_config.PruningSchedule",
}


def in_present_form(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the configuration of a checkpoint as it would be written today.

    Args:
        config: as it was read; what is no configuration is returned as it is.
    """
    present, model = _with_moved_targets(config), config.get("model")
    if isinstance(model, Mapping) and isinstance(model.get("losses"), Mapping):
        present["model"] = _with_the_criterion_outside(model)
    losses = present.get("losses")
    if isinstance(losses, Mapping) and losses.get("_target_") == _MADE_BY_THE_DETECTOR:
        kept = {k: v for k, v in losses.items() if k not in ("_partial_", "width")}
        present["losses"] = {**kept, "_target_": "sparse_dset.losses.make_criterion"}
    return present


def _with_moved_targets(node: Any) -> Any:
    """Names classes by where they are today."""
    if isinstance(node, Mapping):
        return {key: _with_moved_targets(value) for key, value in node.items()}
    return _MOVED.get(node, node) if isinstance(node, str) else node


def _with_the_criterion_outside(model: Mapping[str, Any]) -> dict[str, Any]:
    """The detector made its losses itself, and their heads where they needed some."""
    losses = model["losses"]
    needs_heads = any(losses.get(name, 1.0) for name in ("dense_cls", "dense_box"))
    return {**{k: v for k, v in model.items() if k != "losses"}, "dense_head": needs_heads}
