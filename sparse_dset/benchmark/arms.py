"""Which executions and keep ratios are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from sparse_dset.checks import check_list, check_number, check_size
from sparse_dset.engine.coco_evaluator import MAX_DETECTIONS
from sparse_dset.models.executions import DENSE, find_execution
from sparse_dset.models.pruner import check_keep_ratio

TARGETS = ("model", "peers", "training", "ops", "neck", "decoder")


@dataclass(frozen=True)
class Arm:
    """One way to run the detector.

    Attributes:
        execution: see ``models.executions.EXECUTIONS``.
        keep_ratio: what is asked of the pruner, in (0, 1]; 1 for ``dense``, which does not prune.

    Raises:
        ValueError: an unknown execution, or a ratio out of range.
    """

    execution: str
    keep_ratio: float = 1.0

    def __post_init__(self) -> None:
        prunes = find_execution(self.execution).prunes
        ratio = check_keep_ratio(self.keep_ratio)
        # Sweeps over ranges give numbers such as 0.30000000000000004.
        object.__setattr__(self, "keep_ratio", round(ratio, 6) or ratio)
        if not prunes and self.keep_ratio != 1.0:
            raise ValueError(
                f"{self.execution} keeps every token: its keep_ratio is 1, got {ratio}"
            )

    @property
    def name(self) -> str:
        """For people, and unique among arms."""
        return f"{self.execution}@{self.keep_ratio:g}" if self.prunes else self.execution

    @property
    def prunes(self) -> bool:
        """Whether its execution leaves tokens out."""
        return find_execution(self.execution).prunes


def plan_arms(executions: Sequence[str], keep_ratios: Sequence[float]) -> tuple[Arm, ...]:
    """Returns every execution at every ratio, each once; ``dense`` once, at ratio 1.

    Raises:
        ValueError: an unknown execution, a ratio out of range, or nothing to measure.
    """
    for keep_ratio in keep_ratios:
        check_keep_ratio(keep_ratio, "keep_ratios")
    arms = [
        Arm(execution, keep_ratio if find_execution(execution).prunes else 1.0)
        for execution in executions
        for keep_ratio in keep_ratios
    ]
    if not arms:
        raise ValueError("there is nothing to measure: executions or keep_ratios is empty")
    return tuple(dict.fromkeys(arms))


def check_run(executions: Sequence[str | None], keep_ratio: float | None) -> None:
    """Checks what a script is asked to run; None leaves it to the checkpoint.

    Raises:
        ValueError: see ``plan_arms``.
    """
    named = [execution or DENSE.name for execution in executions]
    plan_arms(named, [1.0 if keep_ratio is None else keep_ratio])


@dataclass(frozen=True)
class BenchmarkConfig:
    """Settings of a benchmark, checked before anything is measured.

    Attributes:
        executions, keep_ratios: see `plan_arms`.
        size: (height, width) of the images; None is the size of the data set or of the model.
        batch_size: images per forward pass.
        images: how many images of a data set are timed, in turns.
        threads: CPU threads of PyTorch; None keeps its choice.
        warmup: forward passes of each arm that are not counted, at least 1: first calls tune
            kernels and allocate memory.
        repeats: forward passes of each arm that are counted.
        evaluate: also compute AP, where there are a checkpoint and data.
        fuse: time the inference form; FLOPs are counted on the network as published.
        target: "model" measures executions of the whole detector, "peers" the same network in other
            libraries, "training" its forward and backward passes, "ops", "neck" and "decoder" parts
            of it (these five on a CPU, and with ``keep_ratios`` only).
        max_detections: of AP, see `CocoEvaluator`.
        compile: measure the compiled Hugging Face network among the peers too.
    """

    executions: tuple[str, ...]
    keep_ratios: tuple[float, ...]
    size: tuple[int, int] | None = None
    batch_size: int = 1
    images: int = 16
    threads: int | None = None
    warmup: int = 3
    repeats: int = 30
    evaluate: bool = True
    fuse: bool = True
    target: str = "model"
    max_detections: int = MAX_DETECTIONS
    compile: bool = False

    def __post_init__(self) -> None:
        for name in ("executions", "keep_ratios"):
            check_list(name, getattr(self, name))
            object.__setattr__(self, name, tuple(getattr(self, name)))
        plan_arms(self.executions, self.keep_ratios)
        if self.target not in TARGETS:
            raise ValueError(f"target must be one of {', '.join(TARGETS)}; got {self.target!r}")
        if self.size is not None:
            check_size("size", self.size, at_least=32)
            object.__setattr__(self, "size", tuple(self.size))
        for name in ("batch_size", "images", "threads", "warmup", "repeats", "max_detections"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), at_least=1, whole=True)

    @classmethod
    def from_plain(cls, cfg: Mapping[str, Any]) -> BenchmarkConfig:
        """Reads conf/benchmark.yaml; ``execution`` and ``pruner.keep_ratio`` replace the lists."""
        if cfg["target"] != "model" and cfg["device"] not in ("auto", "cpu"):
            raise ValueError(f"target={cfg['target']} is of a CPU, got device={cfg['device']}")
        if cfg["target"] not in ("model", "training") and cfg["batch_size"] != 1:
            raise ValueError(
                f"target={cfg['target']} takes images one by one, got batch_size="
                f"{cfg['batch_size']}"
            )
        execution, keep_ratio = cfg["execution"], cfg["pruner"]["keep_ratio"]
        values = {field.name: cfg[field.name] for field in fields(cls)}
        if execution is not None:
            values["executions"] = (execution,)
        if keep_ratio is not None:
            values["keep_ratios"] = (keep_ratio,)
        return cls(**values)
