"""Trains and measures arms that differ in one switch: ``python scripts/ablate.py ablation=aerial``.

A row is written the moment it is known, and a second call goes on with what is missing. An arm that
fails becomes a row with its error, and the others go on.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from sparse_dset.checks import check_list, check_number
from sparse_dset.command_line import check_command_line, script, task_overrides
from sparse_dset.config import build_from_config, check_config, compose_config
from sparse_dset.engine.checkpoint import weights_name
from sparse_dset.engine.claim import claimed
from sparse_dset.engine.loggers import append_row, environment, now, read_rows, shown
from sparse_dset.engine.outputs import job_folder
from sparse_dset.engine.plan import check_plan
from sparse_dset.engine.resume import lasting_settings
from sparse_dset.files import write_text
from sparse_dset.overrides import text_override
from sparse_dset.sweep.ablation import AblationArm, CalibratedCheckpoint, ablation_table, read_arms

_TRAIN = Path(__file__).with_name("train.py")


def _check(plain: dict[str, Any]) -> None:
    """Composes the trainings to come, so that a misspelt key is found before the first starts."""
    for name in ("base", "seeds", "keep_ratios", "only"):
        if plain[name] is not None:
            check_list(name, plain[name])
    for seed in plain["seeds"]:
        check_number("seeds", seed, at_least=0, whole=True)
    check_number("bootstrap", plain["bootstrap"], at_least=0, whole=True)
    check_number("max_detections", plain["max_detections"], at_least=1, whole=True)
    arms = read_arms(plain["arms"])
    unknown = [name for name in plain["only"] or () if name not in arms]
    if unknown:
        raise ValueError(f"only names {unknown[0]!r}; the arms are {', '.join(arms)}")
    named = [arms[name] for name in plain["only"] or arms]
    trained = [arms[arm.start] for arm in named if arm.start is not None]
    for arm in {arm.name: arm for arm in [*named, *trained]}.values():
        arm.plan(plain["keep_ratios"])
        planned = compose_config("train", [*plain["base"], *arm.train])
        check_plan(planned)
        if planned["data"].get("val") is None:
            raise ValueError(f"arm {arm.name} has data.val=null: ablate measures on data.val")
        # In hydra's grammar the keys of {s4: -0.5} have no quotes.
        settings = [f"pruner.{key}={value}".replace("'", "") for key, value in arm.pruner.items()]
        config = compose_config("train", [*plain["base"], *settings])
        build_from_config(config, pretrained=False).check_decision()


def _train(arm: AblationArm, seed: int, base: list[str], folder: Path) -> None:
    """Trains in a process of its own, or goes on where it was.

    Raises:
        RuntimeError: the training failed; the end of what it said.
    """
    place = text_override("train.output_dir", folder)
    overrides = [*base, *arm.train, f"train.seed={seed}", place, "resume=true"]
    print(f"{arm.name}, seed {seed}: train.py {' '.join(overrides)}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "output.txt").open("a") as output:
        done = subprocess.run(
            [sys.executable, str(_TRAIN), *overrides], stdout=output, stderr=subprocess.STDOUT
        )
    if done.returncode:
        said = (folder / "output.txt").read_text()[-1500:]
        raise RuntimeError(f"{arm.name}, seed {seed}: training failed: {said}")


@script("ablate")
def main(cfg: DictConfig) -> None:
    """Runs what is missing, then prints the table of all rows."""
    plain = check_config(cfg)
    folder = job_folder(plain["output_dir"])
    with claimed(folder):
        _run_all(plain, folder)


def _run_all(plain: dict[str, Any], folder: Path) -> None:
    arms = read_arms(plain["arms"])
    metrics = [f"AP/{plain['class_name']}", "AP"]
    failed = []
    for seed in plain["seeds"]:
        for name in plain["only"] or arms:
            if not _run(arms[name], seed, arms, plain, folder):
                failed.append(f"{name}, seed {seed}")
            rows = _current_rows(read_rows(folder / "results.jsonl"), arms, plain["base"])
            for metric in metrics:
                table = ablation_table(rows, list(arms), metric, next(iter(arms))).markdown()
                write_text(folder / f"{metric.replace('/', '_')}.md", f"{table}\n")
    for metric in metrics:
        path = folder / f"{metric.replace('/', '_')}.md"
        print(f"\n{metric}, in points; difference from {next(iter(arms))} [95 % of the images]\n")
        print(path.read_text())
    if failed:
        raise SystemExit(f"error: failed: {'; '.join(failed)} (see {folder / 'results.jsonl'})")


def _recipe(
    arm: AblationArm, seed: int, arms: Mapping[str, AblationArm], base: Sequence[str]
) -> dict[str, Any]:
    """What a row is of: all that was learnt by, from which weights, and what was changed then."""
    trained = arm if arm.start is None else arms[arm.start]
    config = compose_config("train", [*base, *trained.train, f"train.seed={seed}"])
    return {
        "train": lasting_settings(config),
        "weights": weights_name(config["weights"]),
        "pruner": dict(arm.pruner),
    }


def _current_rows(
    rows: Sequence[dict[str, Any]], arms: Mapping[str, AblationArm], base: Sequence[str]
) -> list[dict[str, Any]]:
    """The rows that were measured with the recipe that their arm has now."""
    now = {
        (name, seed): _recipe(arms[name], seed, arms, base)
        for name, seed in {(row["arm"], row["seed"]) for row in rows}
        if name in arms
    }
    return [row for row in rows if now.get((row["arm"], row["seed"]), {}) == row.get("recipe")]


def _run(
    arm: AblationArm,
    seed: int,
    arms: Mapping[str, AblationArm],
    plain: dict[str, Any],
    folder: Path,
) -> bool:
    """Trains and measures what is missing; whether it worked."""
    rows_file = folder / "results.jsonl"
    same = {"arm": arm.name, "seed": seed, "recipe": _recipe(arm, seed, arms, plain["base"])}
    shared = {**same, "base": plain["base"], "reference": next(iter(arms))}
    shared["overrides"] = task_overrides()
    rows = read_rows(rows_file) if rows_file.exists() else []
    measured = {
        (row["execution"], row["keep_ratio"])
        for row in rows
        if row["kind"] == "ablation"
        and {**row, **same} == row
        and row.get("max_detections", 100) == plain["max_detections"]
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
            row = checkpoint.measure(
                one, bootstrap=plain["bootstrap"], max_detections=plain["max_detections"]
            )
            when = {"time": now()}
            told = {"environment": environment(torch.device("cpu"))}
            append_row(rows_file, {"kind": "ablation", **shared, **when, **row, **told})
            ap = row["metrics"]["AP"]
            print(f"{arm.name}, seed {seed}, {one.name}: AP {shown(100 * ap, '.1f')}", flush=True)
    except Exception as error:
        append_row(rows_file, {"kind": "failed", **shared, "error": str(error)})
        print(f"{arm.name}, seed {seed} failed: {error}", file=sys.stderr, flush=True)
        return False
    return True


if __name__ == "__main__":
    check_command_line("ablate", _check)
    main()
