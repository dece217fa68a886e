"""Tells where the compute goes, part by part, and what each step of pruning saves.

``python scripts/audit.py model=r18 size=[736,1280] keep_ratios=[0.7]``
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from sparse_dset.audit.audit import audit, audit_steps
from sparse_dset.audit.claims import compare_with_claims, is_claimed
from sparse_dset.audit.images import enough_images
from sparse_dset.audit.summary import format_audit, plot_audit
from sparse_dset.benchmark.arms import Arm, BenchmarkConfig, plan_arms
from sparse_dset.benchmark.measured_model import MeasuredModel, open_measured_model
from sparse_dset.checks import check_number
from sparse_dset.command_line import check_command_line, script, task_overrides
from sparse_dset.config import check_config
from sparse_dset.engine.claim import claimed
from sparse_dset.engine.distributed import process_group
from sparse_dset.engine.loggers import append_row, now
from sparse_dset.engine.outputs import job_folder
from sparse_dset.files import write_text
from sparse_dset.models.pruner import ByContent
from sparse_dset.ops.costs import prepare_cpu


def _check(plain: dict[str, Any]) -> None:
    names = ("executions", "keep_ratios", "size", "batch_size", "threads", "warmup", "repeats")
    BenchmarkConfig(**{name: plain[name] for name in names})
    for name in ("depth", "max_images"):
        check_number(name, plain[name], at_least=1, whole=True)
    check_number("tolerance", plain["tolerance"], at_least=0)


def _write(folder: Path, kind: str, shared: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    for row in rows:
        append_row(folder / "results.jsonl", {"kind": kind, **shared, **row})


def _images(measured: MeasuredModel, plain: dict[str, Any]) -> Tensor:
    """Returns the images that are counted, and says how many if that follows what they keep."""
    if measured.dataset is None:
        return measured.images
    images = enough_images(
        measured.model,
        measured.dataset,
        plain["keep_ratios"],
        batch_size=plain["batch_size"],
        tolerance=plain["tolerance"],
        at_most=plain["max_images"],
    )
    if isinstance(measured.model.pruner.selector, ByContent):
        print(f"the keep ratio is an average: counted on {len(images)} images")
    return images


@script("audit")
def main(cfg: DictConfig) -> None:
    """Audits, prints the tables, and writes rows, tables, JSON and a picture."""
    plain = check_config(cfg)
    prepare_cpu(cfg.threads, plain["ops"]["costs"])
    torch.manual_seed(0)
    arms = dict.fromkeys([Arm("dense"), *plan_arms(plain["executions"], plain["keep_ratios"])])
    folder = job_folder(cfg.output_dir)
    with process_group(cfg.device) as device, claimed(folder):
        measured = open_measured_model(plain, plain["size"], cfg.batch_size, device)
        images = _images(measured, plain)
        described = (measured.model, measured.config, images)
        shared = {"setup": measured.describe(plain), "time": now()}
        shared["overrides"] = task_overrides()
        rows = audit(
            *described,
            list(arms),
            batch_size=cfg.batch_size,
            depth=cfg.depth,
            warmup=cfg.warmup,
            repeats=cfg.repeats,
        )
        _write(folder, "audit", shared, rows)
        steps = [
            step
            for keep_ratio in plain["keep_ratios"]
            for step in audit_steps(*described, keep_ratio, cfg.batch_size)
        ]
        _write(folder, "audit_step", shared, steps)
        claims = []
        if is_claimed(measured.config, images):
            claims = compare_with_claims(measured.model, measured.images)
            _write(folder, "claim", shared, claims)
    setup = shared["setup"]
    title = f"{setup['model']}, {setup['size'][0]}x{setup['size'][1]}, {setup['device']}, "
    title += f"CPU threads: {setup['threads']}"
    text = f"# Audit of {title}\n\n{format_audit(rows, steps, claims)}"
    print(f"\n{text}")
    write_text(folder / "audit.md", text)
    everything = {**shared, "rows": rows, "steps": steps, "claims": claims}
    write_text(folder / "audit.json", json.dumps(everything, indent=1))
    first = [step for step in steps if step["keep_ratio"] == plain["keep_ratios"][0]]
    plot_audit(rows, first, folder / "audit.png", f"{title}, steps at {first[0]['keep_ratio']:g}")
    print(f"rows, tables, JSON and picture: {folder}")


if __name__ == "__main__":
    check_command_line("audit", _check)
    main()
