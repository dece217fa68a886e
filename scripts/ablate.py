"""Trains and measures arms that differ in one switch: ``python scripts/ablate.py ablation=aerial``.

A row is written the moment it is known, and a second call goes on with what is missing. An arm that
fails becomes a row with its error, and the others go on.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig

from sparse_dset.analysis.ablation import (
    AblationArm,
    CalibratedCheckpoint,
    ablation_table,
    read_arms,
)
from sparse_dset.analysis.table import read_rows
from sparse_dset.config import check_command_line, check_config, compose_config
from sparse_dset.engine.loggers import append_row, environment, now
from sparse_dset.engine.plan import check_plan

_TRAIN = Path(__file__).with_name("train.py")


def _check(plain: dict[str, Any]) -> None:
    """Composes every training, so that a misspelt key is found before the first one starts."""
    arms = read_arms(plain["arms"])
    unknown = [name for name in plain["only"] or () if name not in arms]
    if unknown:
        raise ValueError(f"only names {unknown[0]!r}; the arms are {', '.join(arms)}")
    for arm in arms.values():
        arm.plan(plain["keep_ratios"])
        check_plan(compose_config("train", [*plain["base"], *arm.train]))
        # In hydra's grammar the keys of {s4: -0.5} have no quotes.
        settings = [f"pruner.{key}={value}".replace("'", "") for key, value in arm.pruner.items()]
        compose_config("train", [*plain["base"], *settings])


def _train(arm: AblationArm, seed: int, base: list[str], folder: Path) -> None:
    """Trains in a process of its own, or goes on where it was.

    Raises:
        RuntimeError: the training failed; the end of what it said.
    """
    overrides = [*base, *arm.train, f"train.seed={seed}", f"train.output_dir={folder}"]
    if (folder / "last.pt").exists():
        overrides.append("resume=true")
    print(f"{arm.name}, seed {seed}: train.py {' '.join(overrides)}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "output.txt").open("a") as output:
        done = subprocess.run(
            [sys.executable, str(_TRAIN), *overrides], stdout=output, stderr=subprocess.STDOUT
        )
    if done.returncode:
        said = (folder / "output.txt").read_text()[-1500:]
        raise RuntimeError(f"{arm.name}, seed {seed}: training failed: {said}")


@hydra.main(version_base="1.3", config_path="../conf", config_name="ablate")
def main(cfg: DictConfig) -> None:
    """Runs what is missing, then prints the table of all rows."""
    plain = check_config(cfg)
    folder = Path(plain["output_dir"])
    arms = read_arms(plain["arms"])
    metrics = [f"AP/{plain['class_name']}", "AP"]
    failed = []
    for seed in plain["seeds"]:
        for name in plain["only"] or arms:
            if not _run(arms[name], seed, plain, folder):
                failed.append(f"{name}, seed {seed}")
            rows = [row for row in read_rows(folder / "results.jsonl") if _is_current(row, plain)]
            for metric in metrics:
                table = ablation_table(rows, list(arms), metric, next(iter(arms))).markdown()
                (folder / f"{metric.replace('/', '_')}.md").write_text(f"{table}\n")
    for metric in metrics:
        path = folder / f"{metric.replace('/', '_')}.md"
        print(f"\n{metric}, in points; difference from {next(iter(arms))} [95 % of the images]\n")
        print(path.read_text())
    if failed:
        raise SystemExit(f"error: failed: {'; '.join(failed)} (see {folder / 'results.jsonl'})")


def _settings(name: str, plain: dict[str, Any]) -> dict[str, Any]:
    """An arm's settings, with those of the arm that it starts from."""
    own = plain["arms"][name] or {}
    return {**(plain["arms"][own["start"]] or {} if "start" in own else {}), **own}


def _is_current(row: dict[str, Any], plain: dict[str, Any]) -> bool:
    """Whether a row was measured with the settings that its arm has now."""
    if row["arm"] not in plain["arms"]:
        return False
    return (row["base"], row["settings"]) == (plain["base"], _settings(row["arm"], plain))


def _run(arm: AblationArm, seed: int, plain: dict[str, Any], folder: Path) -> bool:
    """Trains and measures what is missing; whether it worked."""
    rows_file = folder / "results.jsonl"
    shared = {
        "arm": arm.name,
        "seed": seed,
        "settings": _settings(arm.name, plain),
        "base": plain["base"],
    }
    rows = read_rows(rows_file) if rows_file.exists() else []
    measured = {
        (row["execution"], row["keep_ratio"])
        for row in rows
        if row["kind"] == "ablation" and {**row, **shared} == row
    }
    missing = [
        one
        for one in arm.plan(plain["keep_ratios"])
        if (one.execution, one.keep_ratio) not in measured
    ]
    if not missing:
        return True
    trained = folder / f"{arm.start or arm.name}-{seed}"
    try:
        if arm.start is None:
            _train(arm, seed, plain["base"], trained)
        checkpoint = CalibratedCheckpoint(trained / "last.pt", arm.pruner, seed)
        for one in missing:
            row = checkpoint.measure(one, bootstrap=plain["bootstrap"])
            when = {"time": now()}
            told = {"environment": environment(torch.device("cpu"))}
            append_row(rows_file, {"kind": "ablation", **shared, **when, **row, **told})
            ap = row["metrics"]["AP"]
            print(f"{arm.name}, seed {seed}, {one.name}: AP {100 * ap:.1f}", flush=True)
    except Exception as error:
        append_row(rows_file, {"kind": "failed", **shared, "error": str(error)})
        print(f"{arm.name}, seed {seed} failed: {error}", file=sys.stderr, flush=True)
        return False
    return True


if __name__ == "__main__":
    check_command_line("ablate", _check)
    main()
