"""Measures executions and keep ratios against ``dense``: AP, GFLOPs, kept tokens, latency.

``python scripts/benchmark.py checkpoint=x.pt``, or as a sweep of single measurements
``python scripts/benchmark.py -m execution=dense,sparse pruner.keep_ratio=0.1,0.3``.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from sparse_dset.analysis.benchmark import (
    Arm,
    BenchmarkConfig,
    evaluate_arm,
    find_validation_set,
    measure,
    plan_arms,
    sample_images,
)
from sparse_dset.analysis.plot import plot_results
from sparse_dset.analysis.table import format_table, read_rows
from sparse_dset.config import build_from_config, check_command_line, check_config
from sparse_dset.engine.checkpoint import load_checkpoint, load_detector
from sparse_dset.engine.distributed import process_group
from sparse_dset.engine.loggers import append_row
from sparse_dset.models.detector import Detector
from sparse_dset.ops import use_backend


def _model_overrides() -> list[str]:
    """What the command line says about the model, but for the keep ratio."""
    return [
        text
        for text in HydraConfig.get().overrides.task
        if text.lstrip("+~").split("=")[0].split(".")[0] in ("model", "pruner", "losses")
        and not text.startswith("pruner.keep_ratio=")
    ]


def _load(plain: dict[str, Any]) -> tuple[Detector, dict[str, Any]]:
    """The detector, and the configuration that describes it."""
    if plain["checkpoint"] is None:
        # Every forward pass is told its keep ratio.
        model = {**plain["model"], "pruner": {**plain["model"]["pruner"], "keep_ratio": 1.0}}
        return build_from_config({"model": model}, pretrained=False), {**plain, "model": model}
    if _model_overrides():
        raise ValueError(
            f"the model is the one of {plain['checkpoint']}; leave out {_model_overrides()}"
        )
    return load_detector(plain["checkpoint"]), load_checkpoint(plain["checkpoint"])["config"]


@hydra.main(version_base="1.3", config_path="../conf", config_name="benchmark")
def main(cfg: DictConfig) -> None:
    """Measures, and writes rows, a table and a plot."""
    plain = check_config(cfg)
    config = BenchmarkConfig.from_plain(plain)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    torch.manual_seed(0)
    model, record = _load(plain)
    dataset = find_validation_set(plain, record, model)
    size = config.size or tuple((plain.get("data") or record["data"])["size"] if dataset else model.image_size)
    setup = {
        "model": None if plain["checkpoint"] else HydraConfig.get().runtime.choices["model"],
        "overrides": _model_overrides(),
        "checkpoint": plain["checkpoint"],
        "data": str(dataset.annotations) if dataset else None,
    }
    ...


if __name__ == "__main__":
    check_command_line("benchmark", BenchmarkConfig.from_plain)
    main()
