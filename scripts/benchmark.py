"""Measures executions and keep ratios against ``dense``: AP, GFLOPs, kept tokens, latency.

``python scripts/benchmark.py checkpoint=x.pt``, or as a sweep of single measurements
``python scripts/benchmark.py -m execution=dense,sparse pruner.keep_ratio=0.1,0.3``.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from sparse_dset.benchmark.arms import Arm, BenchmarkConfig, plan_arms
from sparse_dset.benchmark.measure import measure
from sparse_dset.benchmark.measured_model import (
    check_takes_keep_ratios,
    model_name,
    open_detector,
    open_measured_model,
)
from sparse_dset.benchmark.plot import plot_results
from sparse_dset.benchmark.table import format_table
from sparse_dset.benchmark.validation import evaluate_arm
from sparse_dset.command_line import check_command_line, script, task_overrides
from sparse_dset.config import check_config
from sparse_dset.engine.distributed import process_group
from sparse_dset.engine.loggers import append_row, now
from sparse_dset.engine.outputs import job_folder
from sparse_dset.files import write_text
from sparse_dset.models.detector import Detector
from sparse_dset.ops.costs import prepare_cpu
from sparse_dset.report.page import read_all


def _report(folder: Path, setup: dict[str, Any]) -> None:
    """Prints and writes the table, and draws the plot, of all rows of this setup so far.

    Those of the jobs of a sweep, which have folders of their own in this one, are among them.
    """
    rows = [row for row in read_all([folder]) if row.get("setup") == setup]
    table = format_table(rows)
    print(f"\n{table}")
    write_text(folder / "table.md", table)
    height, width = setup["size"]
    title = f"{setup['model']}, {height}x{width}, batch of {setup['batch_size']}, "
    title += f"{setup['device']}, CPU threads: {setup['threads']}, {setup['instruction_set']}"
    plot_results(rows, folder / "plot.png", title=title)
    print(f"rows, table and plot: {folder}")


def _compare_parts(model: Detector, config: BenchmarkConfig, folder: Path, name: str) -> None:
    """Compares parts of the network, or all of it, with their peers; prints rows as they come."""
    from sparse_dset.benchmark import kernels, networks
    from sparse_dset.benchmark.comparison import compare, comparison_notes, format_comparisons

    if config.size is not None:
        model.image_size = config.size
    if config.target == "ops":
        cases = kernels.ops_cases(config.keep_ratios)
    else:
        make = {
            "neck": networks.neck_cases,
            "decoder": networks.decoder_cases,
            "peers": partial(networks.peer_cases, compiled=config.compile),
            "training": partial(networks.training_cases, batch_size=config.batch_size),
        }[config.target]
        cases = make(model.eval(), name, config.keep_ratios)
    rows = []
    with torch.no_grad():
        for case in cases:
            new = compare(case, warmup=config.warmup, repeats=config.repeats)
            for row in new:
                shared = {"kind": "comparison", "target": config.target, "time": now()}
                shared["overrides"] = task_overrides()
                append_row(folder / "comparisons.jsonl", {**shared, **row})
            print(format_comparisons(new, header=not rows), end="", flush=True)
            rows += new
    notes = comparison_notes(rows)
    text = f"{format_comparisons(rows)}\n{notes}"
    write_text(folder / f"{config.target}.md", text)
    print(f"\n{notes}rows: {folder / 'comparisons.jsonl'}")


@script("benchmark")
def main(cfg: DictConfig) -> None:
    """Measures, and writes rows, a table and a plot."""
    plain = check_config(cfg)
    config = BenchmarkConfig.from_plain(plain)
    prepare_cpu(config.threads, plain["ops"]["costs"])
    torch.backends.cudnn.allow_tf32 = False  # convolutions as exact as matrix products
    torch.manual_seed(0)
    if config.target != "model":
        model, _ = open_detector(plain)
        check_takes_keep_ratios(model)
        _compare_parts(model, config, job_folder(cfg.output_dir), model_name(cfg.checkpoint))
        return
    folder = job_folder(cfg.output_dir)
    arms = plan_arms(config.executions, config.keep_ratios)
    with process_group(cfg.device) as device:
        num_batches = -(-config.images // config.batch_size)
        measured = open_measured_model(plain, config.size, num_batches * config.batch_size, device)
        setup = {**measured.describe(plain), "fused": config.fuse}
        every = tuple(dict.fromkeys([Arm("dense"), *arms]))
        rows = measure(
            measured.model,
            measured.images.split(config.batch_size),
            every,
            warmup=config.warmup,
            repeats=config.repeats,
            fuse=config.fuse,
        )
        row_of = {arm: rows[every.index(arm)] for arm in arms}
        shared = {"kind": "benchmark", "setup": setup, "config": measured.config}
        shared["overrides"] = task_overrides()
        for row in row_of.values():
            append_row(folder / "results.jsonl", {**shared, "time": now(), **row})
        if config.evaluate and cfg.checkpoint is not None and measured.dataset is not None:
            for arm, row in row_of.items():  # a later row replaces the one without AP
                metrics = evaluate_arm(
                    measured.model,
                    measured.dataset,
                    arm,
                    batch_size=cfg.eval_batch_size,
                    max_detections=config.max_detections,
                    device=device,
                )
                told = {"metrics": metrics, "max_detections": config.max_detections}
                row = {**shared, "time": now(), **row, **told}
                append_row(folder / "results.jsonl", row)
    _report(Path(cfg.output_dir), setup)


if __name__ == "__main__":
    check_command_line("benchmark", BenchmarkConfig.from_plain)
    main()
