"""Finds the settings with which a checkpoint's pruner keeps what the content asks for.

``python scripts/calibrate.py checkpoint=x.pt selector=threshold keep_ratio=0.2`` writes them into
the checkpoint. The count then differs from image to image, and the keep ratio is its average over
the validation data.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from sparse_dset.benchmark.table import markdown_table
from sparse_dset.benchmark.validation import open_validation_set
from sparse_dset.command_line import check_command_line, script, task_overrides
from sparse_dset.config import check_config, with_pruner
from sparse_dset.engine.calibrate import (
    calibrated,
    centres_kept,
    kept_tokens,
    mean_share,
)
from sparse_dset.engine.checkpoint import read_detector, replace_config
from sparse_dset.engine.distributed import process_group
from sparse_dset.engine.evaluate import evaluation_loader
from sparse_dset.engine.loggers import append_row, environment, now, shown
from sparse_dset.engine.outputs import job_folder
from sparse_dset.models.pruner import BY_CONTENT, TopK, check_keep_ratio
from sparse_dset.ops.costs import prepare_cpu

SHOWN = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)


def _check(plain: dict[str, Any]) -> None:
    check_keep_ratio(plain["keep_ratio"])
    if plain["selector"] not in BY_CONTENT:
        raise ValueError(f"selector must be threshold or mass, got {plain['selector']!r}")


def _destination(cfg: DictConfig) -> Path:
    """The checkpoint to write: the same file, but under ``-m`` one in each job's own folder."""
    if cfg.output is not None:
        return Path(cfg.output)
    folder, same = job_folder(cfg.output_dir), Path(cfg.checkpoint)
    return same if folder == Path(cfg.output_dir) else folder / same.name


def _check_outputs(jobs: list[dict[str, Any]]) -> None:
    """Refuses jobs that would write one checkpoint after the other over it."""
    given = [job["output"] for job in jobs if job["output"] is not None]
    if len(given) != len(set(given)):
        raise SystemExit(
            f"error: several jobs write output={given[0]}: leave it out, and each writes into its "
            "own folder, or give one for each, e.g. output='${selector}.pt'"
        )


@script("calibrate")
def main(cfg: DictConfig) -> None:
    """Calibrates, writes the checkpoint and a row, and prints what is kept at some ratios."""
    prepare_cpu(cfg.threads)
    settings = {"selector": cfg.selector, "keep_ratio": cfg.keep_ratio, "calibration": None}
    settings |= {key: cfg[key] for key in ("halo", "score_by") if cfg[key] is not None}
    model, config = read_detector(cfg.checkpoint, pruner=settings)
    halo = model.pruner.halo
    data = check_config(cfg).get("data") or config.get("data")
    dataset = open_validation_set(data, cfg.size, config["model"]["class_names"], model.view)
    with process_group(cfg.device) as device:
        loader = evaluation_loader(dataset, cfg.batch_size, num_workers=cfg.num_workers)
        selector, scored = calibrated(model.to(device), loader, device=device)
    config = with_pruner(config, {"calibration": list(selector.calibration)})
    destination = _destination(cfg)
    replace_config(cfg.checkpoint, destination, config)

    same_count = TopK(selector.min_tokens, selector.max_tokens)
    table = []
    for ratio in SHOWN:
        rules = [selector.with_keep_ratio(ratio), same_count.with_keep_ratio(ratio)]
        content, count = (kept_tokens(rule, scored, halo) for rule in rules)
        setting = getattr(rules[0], cfg.selector)
        shares = mean_share(content, scored), centres_kept(content, scored)
        # With a halo the same count of selected cells is not the same count of kept ones.
        table.append([ratio, setting, *shares, None if halo else centres_kept(count, scored)])
    row = {
        "kind": "calibrate",
        "time": now(),
        "overrides": task_overrides(),
        "checkpoint": str(destination),
        "data": str(dataset.annotations),
        "selector": cfg.selector,
        "columns": ["keep_ratio", "setting", "kept", "centres", "centres_same_count"],
        "rows": table,
        "environment": environment(device),
    }
    append_row(job_folder(cfg.output_dir) / "results.jsonl", row)
    names = ["keep ratio", cfg.selector, "kept %", "objects kept %", "objects kept % (topk)"]
    cells = [
        [f"{r:g}", f"{s:.4g}", *("-" if x is None else shown(100 * x, ".1f") for x in rest)]
        for r, s, *rest in table
    ]
    print(f"{destination}: {cfg.selector}, {cfg.keep_ratio:g} of {dataset.annotations} on average")
    print("an object is kept where the stride-8 site of its centre is\n")
    print(markdown_table(names, cells))


if __name__ == "__main__":
    _check_outputs(check_command_line("calibrate", _check))
    main()
