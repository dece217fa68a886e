"""One job of a sweep: what makes it the same job, its row, and what became of all jobs."""

from __future__ import annotations

import hashlib
import json
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import to_absolute_path
from omegaconf import DictConfig

from sparse_dset.benchmark.arms import Arm, BenchmarkConfig
from sparse_dset.benchmark.measure import measure
from sparse_dset.benchmark.measured_model import open_measured_model, selection_of
from sparse_dset.benchmark.table import Row
from sparse_dset.benchmark.validation import evaluate_arm
from sparse_dset.checks import check_number
from sparse_dset.command_line import task_overrides
from sparse_dset.config import build_from_config, check_config
from sparse_dset.engine.checkpoint import weights_name
from sparse_dset.engine.distributed import process_group
from sparse_dset.engine.loggers import NOT_AVAILABLE, append_row, is_defined, now, read_rows
from sparse_dset.models.executions import DENSE, find_execution
from sparse_dset.ops.costs import prepare_cpu

_HOW_TO_RUN = ("output_dir", "resume", "objectives")
"""Settings that do not change what a job measures."""

_PATHS = ("output_dir", "checkpoint", "root", "annotations")


def with_absolute_paths(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a job's configuration with paths that hold wherever a launcher runs it.

    Relative ones count from the folder in which the sweep was started.
    """
    return {
        key: with_absolute_paths(value)
        if isinstance(value, Mapping)
        else to_absolute_path(value)
        if key in _PATHS and value is not None
        else value
        for key, value in plain.items()
    }


def job_id(plain: Mapping[str, Any]) -> str:
    """Returns a name for what a job measures: the same settings and weights, the same name.

    Args:
        plain: the job's configuration.
    """
    settings = {key: value for key, value in plain.items() if key not in _HOW_TO_RUN}
    settings["checkpoint"] = weights_name(plain["checkpoint"]) or plain["checkpoint"]
    if not find_execution(plain["execution"]).prunes:  # it keeps every token, whatever it is asked
        settings["pruner"] = {**settings["pruner"], "keep_ratio": 1.0}
        settings["model"] = {**settings["model"], "pruner": settings["pruner"]}
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def run_job(cfg: DictConfig) -> float | tuple[float, ...]:
    """Measures what one job asks for and writes its row, or the row that says why there is none.

    What the same sweep has measured already, e.g. ``dense`` at another keep ratio, is not measured
    again; with ``resume``, nor is what any sweep of this folder has.

    Args:
        cfg: of conf/sweep.yaml.

    Returns:
        The objectives of the row, for sweepers that look for better ones.

    Raises:
        Exception: whatever went wrong, after its row is written.
    """
    hydra_config = HydraConfig.get()
    overrides, sweep = task_overrides(), Path(hydra_config.sweep.dir).name
    file = Path(to_absolute_path(cfg.output_dir)) / "results.jsonl"
    shared: dict[str, Any] = {"overrides": overrides, "sweep": sweep}
    try:
        plain = with_absolute_paths(check_config(cfg))
        shared["job"] = job_id(plain)
        rows = read_rows(file) if file.exists() else []
        known = rows if plain["resume"] else [row for row in rows if row.get("sweep") == sweep]
        row = finished_jobs(known).get(shared["job"])
        if row is not None:
            print(f"{shared['job']} is there already: {' '.join(overrides)}", flush=True)
        else:
            row = {"kind": "sweep", **shared, **measure_job(plain), "time": now()}
            append_row(file, row)
            print(f"{shared['job']} is done: {' '.join(overrides)}", flush=True)
        return read_objectives(row, plain["objectives"])
    except BaseException as error:
        why = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        append_row(file, {"kind": "failed", **shared, "time": now(), **why})
        raise


def measure_job(plain: dict[str, Any]) -> dict[str, Any]:
    """Returns the row of `measure` of one execution, timed in turns with ``dense``, and its AP.

    Args:
        plain: the job's configuration.
    """
    config = job_settings(plain)
    prepare_cpu(config.threads, plain["ops"]["costs"])
    torch.backends.cudnn.allow_tf32 = False  # convolutions as exact as matrix products
    torch.manual_seed(plain["seed"])
    arm = Arm(plain["execution"], config.keep_ratios[0])
    with process_group(plain["device"]) as device:
        num_images = -(-config.images // config.batch_size) * config.batch_size
        measured = open_measured_model(plain, config.size, num_images, device)
        evaluates = config.evaluate and plain["checkpoint"] is not None
        data = plain.get("data") or measured.config.get("data") or {}
        if evaluates and measured.dataset is None and data.get("val") is not None:
            raise FileNotFoundError(
                "there are no images for AP: name data= and data.root=, or say evaluate=false"
            )
        rows = measure(
            measured.model,
            measured.images.split(config.batch_size),
            list(dict.fromkeys([Arm(DENSE.name), arm])),
            warmup=config.warmup,
            repeats=config.repeats,
            fuse=config.fuse,
        )
        row = {
            "setup": {**measured.describe(plain), "fused": config.fuse, "seed": plain["seed"]},
            **rows[-1],
            "selection": selection_of(plain),
        }
        if evaluates and measured.dataset is not None:
            row["max_detections"] = config.max_detections
            row["metrics"] = evaluate_arm(
                measured.model,
                measured.dataset,
                arm,
                batch_size=plain["eval_batch_size"],
                max_detections=config.max_detections,
                device=device,
            )
    return row


def check_job(plain: Mapping[str, Any]) -> None:
    """Checks a job's configuration, those of the model included, before any job starts.

    Raises:
        ValueError: something is out of range.
    """
    job_settings(plain)
    check_number("seed", plain["seed"], at_least=0, whole=True)
    check_number("eval_batch_size", plain["eval_batch_size"], at_least=1, whole=True)
    if plain["checkpoint"] is None:
        build_from_config(plain, pretrained=False).check_decision()


def job_settings(plain: Mapping[str, Any]) -> BenchmarkConfig:
    """Reads and checks what a job's configuration says of the measurement.

    Raises:
        ValueError: something is out of range.
    """
    selection_of(plain)
    execution = plain["execution"]
    return BenchmarkConfig(
        executions=(execution,),
        keep_ratios=(plain["pruner"]["keep_ratio"] if find_execution(execution).prunes else 1.0,),
        size=plain["size"],
        batch_size=plain["batch_size"],
        images=plain["images"],
        threads=plain["threads"],
        warmup=plain["warmup"],
        repeats=plain["repeats"],
        evaluate=plain["evaluate"],
        fuse=plain["fuse"],
        max_detections=plain["max_detections"],
    )


def finished_jobs(rows: Sequence[Row]) -> dict[str, Row]:
    """Returns the last row of each job that has one."""
    return {row["job"]: row for row in rows if row["kind"] == "sweep"}


def failed_jobs(rows: Sequence[Row]) -> list[Row]:
    """Returns the last failure of each job that has not succeeded."""
    done = finished_jobs(rows)
    last = {
        frozenset(text for text in row["overrides"] if text.split("=")[0] not in _HOW_TO_RUN): row
        for row in rows
        if row["kind"] in ("sweep", "failed")
    }
    return [row for row in last.values() if row["kind"] == "failed" and row.get("job") not in done]


def read_objectives(row: Row, names: Sequence[str]) -> float | tuple[float, ...]:
    """Returns what a sweeper optimises.

    Args:
        row: of a job.
        names: keys of the row, through nested ones with dots, e.g. "latency_ms.median".

    Raises:
        ValueError: the row lacks one, e.g. AP without data.
    """
    values = []
    for name in names:
        value: Any = row
        for key in name.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is None:
            raise ValueError(
                f"objectives names {name!r}, which this job did not measure: its row has "
                f"{', '.join(row)}"
            )
        if not is_defined(value):
            raise ValueError(f"objectives names {name!r}, which is {NOT_AVAILABLE} in this job")
        values.append(float(value))
    return values[0] if len(values) == 1 else tuple(values)
