"""Tells where the compute goes, part by part, and what each step of pruning saves.

``python scripts/audit.py model=r18 size=[736,1280] keep_ratios=[0.7]``
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from sparse_dset.analysis.audit import (
    audit,
    audit_steps,
    compare_with_claims,
    is_claimed,
)
from sparse_dset.analysis.audit_report import format_audit, plot_audit
from sparse_dset.analysis.benchmark import Arm, BenchmarkConfig, plan_arms
from sparse_dset.analysis.subject import open_subject
from sparse_dset.checks import check_number
from sparse_dset.command_line import check_command_line, script, task_overrides
from sparse_dset.config import check_config
from sparse_dset.engine.claim import claimed
from sparse_dset.engine.distributed import process_group
from sparse_dset.engine.loggers import append_row, now
from sparse_dset.engine.outputs import job_folder
from sparse_dset.files import write_text
from sparse_dset.ops.costs import set_threads


def _check(plain: dict[str, Any]) -> None:
    names = ("executions", "keep_ratios", "size", "batch_size", "threads", "warmup", "repeats")
    BenchmarkConfig(**{name: plain[name] for name in names})
    check_number("depth", plain["depth"], at_least=1, whole=True)


def _write(folder: Path, kind: str, shared: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    for row in rows:
        append_row(folder / "results.jsonl", {"kind": kind, **shared, **row})


@script("audit")
def main(cfg: DictConfig) -> None:
    """Audits, prints the tables, and writes rows, tables, JSON and a picture."""
    plain = check_config(cfg)
    set_threads(cfg.threads)
    torch.manual_seed(0)
    arms = dict.fromkeys([Arm("dense"), *plan_arms(plain["executions"], plain["keep_ratios"])])
    folder = job_folder(cfg.output_dir)
    with process_group(cfg.device) as device, claimed(folder):
        subject = open_subject(plain, plain["size"], cfg.batch_size, device)
        described = (subject.model, subject.config, subject.images)
        shared = {"setup": subject.describe(plain), "time": now()}
        shared["overrides"] = task_overrides()
        rows = audit(
            *described, list(arms), depth=cfg.depth, warmup=cfg.warmup, repeats=cfg.repeats
        )
        _write(folder, "audit", shared, rows)
        steps = [
            step
            for keep_ratio in plain["keep_ratios"]
            for step in audit_steps(*described, keep_ratio)
        ]
        _write(folder, "audit_step", shared, steps)
        claims = []
        if is_claimed(subject.config, subject.images):
            claims = compare_with_claims(subject.model, subject.images)
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
