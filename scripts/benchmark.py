"""Measures executions and keep ratios against ``dense``: AP, GFLOPs, kept tokens, latency.

``python scripts/benchmark.py checkpoint=x.pt``, or as a sweep of single measurements
``python scripts/benchmark.py -m execution=dense,sparse pruner.keep_ratio=0.1,0.3``.
"""

from __future__ import annotations

import time
from functools import partial
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
from sparse_dset.models.pruner import ByContent


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
        return build_from_config({"model": model}, pretrained=False), {"model": model}
    if _model_overrides():
        raise ValueError(
            f"the model is the one of {plain['checkpoint']}; leave out {_model_overrides()}"
        )
    return load_detector(plain["checkpoint"]), load_checkpoint(plain["checkpoint"])["config"]


def _report(folder: Path, setup: dict[str, Any]) -> None:
    """Prints and writes the table, and draws the plot, of all rows of this setup so far."""
    rows = [row for row in read_rows(folder / "results.jsonl") if row.get("setup") == setup]
    table = format_table(rows)
    print(f"\n{table}")
    (folder / "table.md").write_text(table, encoding="utf-8")
    height, width = setup["size"]
    title = f"{setup['model']}, {height}x{width}, batch of {setup['batch_size']}, "
    title += f"{setup['device']}, CPU threads: {setup['threads']}"
    plot_results(rows, folder / "plot.png", title=title)
    print(f"rows, table and plot: {folder}")


def _compare_parts(model: Detector, config: BenchmarkConfig, folder: Path, name: str) -> None:
    """Compares parts of the network, or all of it, with their peers; prints rows as they come."""
    from sparse_dset.analysis import kernel_cases
    from sparse_dset.analysis.comparison import compare, format_comparisons

    if config.size is not None:
        model.image_size = config.size
    if config.target == "ops":
        cases = kernel_cases.ops_cases(config.keep_ratios)
    else:
        make = {
            "neck": kernel_cases.neck_cases,
            "decoder": kernel_cases.decoder_cases,
            "peers": partial(kernel_cases.peer_cases, compiled=config.compile),
            "training": partial(kernel_cases.training_cases, batch_size=config.batch_size),
        }[config.target]
        cases = make(model.eval(), name, config.keep_ratios)
    rows = []
    with torch.no_grad():
        for case in cases:
            new = compare(case, warmup=config.warmup, repeats=config.repeats)
            for row in new:
                shared = {"kind": "comparison", "target": config.target, "time": _now()}
                append_row(folder / "comparisons.jsonl", {**shared, **row})
            print(format_comparisons(new, header=not rows), end="", flush=True)
            rows += new
    (folder / f"{config.target}.md").write_text(format_comparisons(rows), encoding="utf-8")
    print(f"{torch.get_num_threads()} threads; rows: {folder / 'comparisons.jsonl'}")


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S")


@hydra.main(version_base="1.3", config_path="../conf", config_name="benchmark")
def main(cfg: DictConfig) -> None:
    """Measures, and writes rows, a table and a plot."""
    plain = check_config(cfg)
    config = BenchmarkConfig.from_plain(plain)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    torch.backends.cudnn.allow_tf32 = False  # convolutions as exact as matrix products
    torch.manual_seed(0)
    model, record = _load(plain)
    selector = model.pruner.selector
    if isinstance(selector, ByContent) and not selector.calibration:
        raise ValueError(
            "the benchmark sweeps keep ratios, which needs pruner.selector=topk or a checkpoint "
            "that scripts/calibrate.py has seen"
        )
    if cfg.ops.backend != "auto":
        model.backend = cfg.ops.backend
    if cfg.ops.algorithm != "auto":
        model.algorithm = cfg.ops.algorithm
    if config.target != "model":
        name = cfg.checkpoint or HydraConfig.get().runtime.choices["model"]
        _compare_parts(model, config, Path(cfg.output_dir), name)
        return
    dataset = find_validation_set(plain.get("data"), record, config.size)
    if dataset is None:
        images = torch.rand(config.batch_size, 3, *(config.size or model.image_size))
    else:
        num_batches = -(-config.images // config.batch_size)
        images = sample_images(dataset, num_batches * config.batch_size, config.size)
    folder = Path(cfg.output_dir)
    arms = plan_arms(config.executions, config.keep_ratios)
    with process_group(cfg.device) as device:
        model = model.to(device)
        batches = images.to(device).split(config.batch_size)
        setup = {
            "model": cfg.checkpoint or HydraConfig.get().runtime.choices["model"],
            "overrides": " ".join(_model_overrides()),
            "data": str(dataset.annotations) if dataset else "random images",
            "size": list(images.shape[-2:]),
            "batch_size": config.batch_size,
            "threads": torch.get_num_threads(),
            "device": str(device),
            "backend": model.backend,
            "fused": config.fuse,
        }
        every = tuple(dict.fromkeys([Arm("dense"), *arms]))
        rows = measure(
            model,
            batches,
            every,
            warmup=config.warmup,
            repeats=config.repeats,
            fuse=config.fuse,
        )
        measured = {arm: rows[every.index(arm)] for arm in arms}
        shared = {"kind": "benchmark", "setup": setup, "config": record}
        for row in measured.values():
            append_row(folder / "results.jsonl", {**shared, "time": _now(), **row})
        if config.evaluate and cfg.checkpoint is not None and dataset is not None:
            for arm, row in measured.items():  # a later row replaces the one without AP
                metrics = evaluate_arm(
                    model, dataset, arm, batch_size=cfg.eval_batch_size, device=device
                )
                row = {**shared, "time": _now(), **row, "metrics": metrics}
                append_row(folder / "results.jsonl", row)
    _report(folder, setup)


if __name__ == "__main__":
    check_command_line("benchmark", BenchmarkConfig.from_plain)
    main()
