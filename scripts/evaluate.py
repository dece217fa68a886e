"""Computes the average precision of a checkpoint.

``python scripts/evaluate.py checkpoint=x.pt execution=sparse pruner.keep_ratio=0.3 data=aerial``
"""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from sparse_dset.benchmark.arms import check_run
from sparse_dset.benchmark.table import markdown_table
from sparse_dset.benchmark.validation import open_validation_set
from sparse_dset.checks import check_number
from sparse_dset.command_line import check_command_line, script, task_overrides
from sparse_dset.config import check_config
from sparse_dset.data.view import view_of
from sparse_dset.engine.checkpoint import read_detector
from sparse_dset.engine.distributed import is_main, process_group
from sparse_dset.engine.evaluate import check_precision, evaluate, evaluation_loader
from sparse_dset.engine.loggers import append_row, environment, now, shown
from sparse_dset.engine.outputs import job_folder
from sparse_dset.models.executions import find_execution
from sparse_dset.models.pruner import TopK
from sparse_dset.ops import resolve_backend
from sparse_dset.ops.costs import prepare_cpu


def _check(plain: dict[str, Any]) -> None:
    check_run([plain["execution"]], plain["pruner"]["keep_ratio"])
    check_precision(plain["amp"])
    check_number("max_detections", plain["max_detections"], at_least=1, whole=True)


@script("evaluate")
def main(cfg: DictConfig) -> None:
    """Evaluates a checkpoint, prints the numbers and appends a row."""
    plain = check_config(cfg)
    prepare_cpu(cfg.threads, plain["ops"]["costs"])
    model, record = read_detector(cfg.checkpoint)
    if cfg.ops.backend != "auto":
        model.backend = cfg.ops.backend
    if cfg.ops.algorithm != "auto":
        model.algorithm = cfg.ops.algorithm
    execution = cfg.execution or model.execution
    asked = plain["pruner"]["keep_ratio"]
    keep_ratio = asked if find_execution(execution).prunes else 1.0
    if keep_ratio is None and isinstance(model.pruner.selector, TopK):
        keep_ratio = model.pruner.selector.keep_ratio
    dataset = open_validation_set(
        plain.get("data") or record.get("data"),
        cfg.size,
        record["model"]["class_names"],
        model.view,
    )
    with process_group(cfg.device) as device:
        metrics = evaluate(
            model.to(device),
            evaluation_loader(dataset, cfg.batch_size, num_workers=cfg.num_workers),
            dataset,
            execution=execution,
            keep_ratio=asked,
            device=device,
            amp=cfg.amp,
            max_detections=cfg.max_detections,
        )
        row = {
            "kind": "evaluate",
            "time": now(),
            "overrides": task_overrides(),
            "checkpoint": cfg.checkpoint,
            "data": str(dataset.annotations),
            "view": view_of(dataset).as_config(),
            "execution": execution,
            "keep_ratio": keep_ratio,
            "amp": cfg.amp,
            "max_detections": cfg.max_detections,
            "metrics": metrics,
            "backend": resolve_backend(model.backend, device).name,
            "environment": environment(device),
            "config": record,
        }
        if is_main():
            append_row(job_folder(cfg.output_dir) / "results.jsonl", row)
            ratio = "as the content asks" if keep_ratio is None else f"{keep_ratio:g}"
            print(f"{cfg.checkpoint}: {execution}, keep ratio {ratio}")
            print(f"pictures are {view_of(dataset)}\n")
            cells = [(name, shown(value, ".4g")) for name, value in metrics.items()]
            print(markdown_table(["metric", "value"], cells))


if __name__ == "__main__":
    check_command_line("evaluate", _check)
    main()
