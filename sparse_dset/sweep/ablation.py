"""Ablations: the same training with one switch changed at a time, measured on the same images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparse_dset.benchmark.arms import Arm
from sparse_dset.benchmark.flops import count_flops
from sparse_dset.benchmark.table import MISSING, Table
from sparse_dset.benchmark.validation import open_validation_set, sample_images
from sparse_dset.data.coco import CocoDetection
from sparse_dset.data.view import view_of_detector
from sparse_dset.engine.calibrate import calibrated, centres_kept, kept_tokens, score_dataset
from sparse_dset.engine.checkpoint import load_checkpoint, load_detector
from sparse_dset.engine.coco_evaluator import MAX_DETECTIONS
from sparse_dset.engine.evaluate import detect, evaluation_loader
from sparse_dset.engine.loggers import is_defined
from sparse_dset.models.detector import Detector
from sparse_dset.models.executions import DENSE, find_execution
from sparse_dset.models.pruner import ByContent

_NUM_COUNTED = 8  # images whose FLOPs are counted


@dataclass(frozen=True)
class AblationArm:
    """One training, or one way to measure what another arm trained.

    Attributes:
        name: of the arm.
        train: overrides of ``scripts/train.py`` beside those that all arms have.
        start: the arm whose checkpoint is measured; None: an own training.
        pruner: settings of the pruner that the measurement changes, e.g. ``{"halo": 1}``.
        execution: how it is measured; ``dense`` is measured beside it in any case.

    Raises:
        ValueError: the settings contradict each other.
    """

    name: str
    train: tuple[str, ...] = ()
    start: str | None = None
    pruner: Mapping[str, Any] = field(default_factory=dict)
    execution: str = "sparse"

    def __post_init__(self) -> None:
        object.__setattr__(self, "train", tuple(self.train))
        if self.train and self.start is not None:
            raise ValueError(f"arm {self.name}: give train or start, not both")
        try:
            find_execution(self.execution)
        except ValueError as error:
            raise ValueError(f"arm {self.name}: {error}") from error

    def plan(self, keep_ratios: Sequence[float]) -> list[Arm]:
        """Returns what is measured of a checkpoint: ``dense``, and the execution at each ratio."""
        return [Arm(DENSE.name), *(Arm(self.execution, ratio) for ratio in keep_ratios)]


def read_arms(arms: Mapping[str, Mapping[str, Any] | None]) -> dict[str, AblationArm]:
    """Reads the arms of conf/ablation.

    Raises:
        ValueError: an unknown key, or a start that is no training arm.
    """
    known = ("train", "start", "pruner", "execution")
    found = {}
    for name, settings in arms.items():
        unknown = [key for key in settings or {} if key not in known]
        if unknown:
            raise ValueError(f"arm {name} has a key {unknown[0]!r}; known are {', '.join(known)}")
        found[name] = AblationArm(name, **(settings or {}))
    trained = [name for name, arm in found.items() if arm.start is None]
    for arm in found.values():
        if arm.start is not None and arm.start not in trained:
            raise ValueError(
                f"arm {arm.name} starts from {arm.start!r}, which is not trained: choose among "
                f"{', '.join(trained)}"
            )
    return found


class CalibratedCheckpoint:
    """A checkpoint whose keep ratios are averages over its validation images.

    Args:
        path: of a training that has ended.
        pruner: settings of the pruner to change; the selector is ``threshold`` unless it says
            otherwise. With ``topk`` or ``batch`` every image keeps the same share.
        seed: of what the pruner draws at random.

    Raises:
        RuntimeError: the training has not ended.
    """

    def __init__(self, path: str | Path, pruner: Mapping[str, Any], seed: int = 0) -> None:
        checkpoint = load_checkpoint(path)
        _check_ended(path, checkpoint)
        settings = {"selector": "threshold", "calibration": None, **pruner}
        self.model: Detector = load_detector(path, pruner=settings)
        config = checkpoint["config"]
        self.dataset: CocoDetection = open_validation_set(
            config["data"], None, config["model"]["class_names"], view_of_detector(self.model)
        )
        self.seed = seed
        torch.manual_seed(seed)
        own = self.model.pruner
        if isinstance(own.selector, ByContent):
            own.selector, self.scored = calibrated(self.model, self._loader(), progress=False)
        else:
            self.scored = score_dataset(self.model, self._loader(), progress=False)

    def measure(
        self, arm: Arm, *, bootstrap: int, max_detections: int = MAX_DETECTIONS
    ) -> dict[str, Any]:
        """Measures one arm.

        Args:
            arm: what is measured.
            bootstrap: samples, see `CocoEvaluator.bootstrap`.
            max_detections: see `CocoEvaluator`.

        Returns:
            ``execution``, ``keep_ratio``, ``metrics`` (see `evaluate`), ``samples`` (see
            `CocoEvaluator.bootstrap`), ``gflops`` (per image, the mean of some), and
            ``centres_kept``, the share of objects whose centre is kept, and ``max_detections``.
        """
        ratio = arm.keep_ratio if arm.prunes else None
        torch.manual_seed(self.seed)
        evaluator, shares = detect(
            self.model,
            self._loader(),
            self.dataset,
            execution=arm.execution,
            keep_ratio=ratio,
            max_detections=max_detections,
            progress=False,
        )
        images = sample_images(self.dataset, _NUM_COUNTED).split(1)
        gflops = [
            count_flops(self.model, x, execution=arm.execution, keep_ratio=ratio)["total"]
            for x in images
        ]
        selector = self.model.pruner.selector.by_image().with_keep_ratio(arm.keep_ratio)
        kept = kept_tokens(selector, self.scored, self.model.pruner.halo)
        return {
            "execution": arm.execution,
            "keep_ratio": arm.keep_ratio,
            "metrics": {**evaluator.summarize(), **shares},
            "samples": evaluator.bootstrap(bootstrap) if bootstrap else {},
            "gflops": float(np.mean(gflops)),
            "centres_kept": centres_kept(kept, self.scored),
            "max_detections": max_detections,
        }

    def _loader(self) -> torch.utils.data.DataLoader:
        return evaluation_loader(self.dataset, 8)


def _check_ended(path: str | Path, checkpoint: Mapping[str, Any]) -> None:
    train = checkpoint["config"]["train"]
    stale = train["patience"] is not None and checkpoint["stale_evaluations"] >= train["patience"]
    if checkpoint["closed_epochs"] < train["epochs"] and not stale:
        raise RuntimeError(
            f"{path} is of a training that has not ended: {checkpoint['closed_epochs']} of "
            f"{train['epochs']} epochs"
        )


def ablation_table(
    rows: Sequence[Mapping[str, Any]], arms: Sequence[str], metric: str, reference: str
) -> Table:
    """Returns a table with a line per arm and a column per measurement.

    A cell holds the metric in points, the mean over the seeds, and its difference from the
    reference with the 95 % interval of the images' bootstrap.

    Args:
        rows: of ``scripts/ablate.py``, the later of two alike counts.
        arms: in the order of the table.
        metric: a key of the metrics, e.g. "AP" or "AP/car"; a row that lacks it has an empty cell.
        reference: the arm that the others are compared with.
    """
    measured = {_key(row): row for row in rows if row["kind"] == "ablation"}
    ratios = {ratio for _, _, execution, ratio in measured if find_execution(execution).prunes}
    columns: list[float | None] = [None, *sorted(ratios, reverse=True)]
    lines = []
    for arm in arms:
        cells = [_cell(measured, arm, column, metric, reference) for column in columns]
        if any(cell != MISSING for cell in cells):
            lines.append([arm, *cells])
    header = ["arm", *(DENSE.name if c is None else f"keep {c:g}" for c in columns)]
    return Table(header, lines)


def _key(row: Mapping[str, Any]) -> tuple[str, int, str, float]:
    return row["arm"], row["seed"], row["execution"], row["keep_ratio"]


def _cell(
    measured: Mapping[tuple, Mapping[str, Any]],
    arm: str,
    column: float | None,
    metric: str,
    reference: str,
) -> str:
    own, theirs = (_seeds(measured, name, column, metric) for name in (arm, reference))
    if not own:
        return MISSING
    mean = 100 * np.mean([row["metrics"][metric] for row in own.values()])
    text = f"{mean:.1f}"
    shared = sorted(own.keys() & theirs.keys())
    if arm == reference or not shared:
        return text
    differences = [
        100 * (own[seed]["metrics"][metric] - theirs[seed]["metrics"][metric]) for seed in shared
    ]
    text += f" {np.mean(differences):+.1f}"
    samples = [[row[seed]["samples"].get(metric, []) for row in (own, theirs)] for seed in shared]
    # Of other numbers of samples the first ones are the same draws.
    length = min(len(values) for pair in samples for values in pair)
    if length:
        # A draw without any object of the class has no AP.
        values = np.array([[one[:length] for one in pair] for pair in samples], dtype=float)
        differences = (values[:, 0] - values[:, 1]).mean(0)
        differences = differences[np.isfinite(differences)]
        if len(differences):
            low, high = np.percentile(differences, [2.5, 97.5])
            text += f" [{100 * low:+.1f}, {100 * high:+.1f}]"
    return text


def _seeds(
    measured: Mapping[tuple, Mapping[str, Any]], arm: str, column: float | None, metric: str
) -> dict[int, Mapping[str, Any]]:
    """The rows of an arm in a column, a keep ratio or None for dense, by seed."""
    return {
        seed: row
        for (name, seed, execution, ratio), row in measured.items()
        if name == arm
        and is_defined(row["metrics"].get(metric))
        and column == (ratio if find_execution(execution).prunes else None)
    }
