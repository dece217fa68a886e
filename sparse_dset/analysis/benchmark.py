"""Measures executions of one detector against each other: same weights, images and process."""

from __future__ import annotations

import copy
import random
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import cycle
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from sparse_dset.analysis.flops import count_flops, part_modules
from sparse_dset.analysis.profile import Run, time_groups
from sparse_dset.analysis.table import LEVELS
from sparse_dset.checks import check_list, check_number, check_size
from sparse_dset.data.coco import CocoDetection
from sparse_dset.data.view import View, reader_config, recorded_view, view_of
from sparse_dset.engine.coco_evaluator import MAX_DETECTIONS
from sparse_dset.engine.datasets import open_dataset
from sparse_dset.engine.evaluate import evaluate, evaluation_loader
from sparse_dset.engine.loggers import environment
from sparse_dset.models.detector import EXECUTIONS, Detector, DetectorOutput
from sparse_dset.models.pruner import ByContent, check_keep_ratio
from sparse_dset.ops.cpu import chosen_algorithm
from sparse_dset.structures import Support

LARGEST_DIFFERENCE = 1e-3
"""Largest difference of logits and boxes from ``dense`` where nothing is pruned."""

TARGETS = ("model", "peers", "training", "ops", "neck", "decoder")


_PLAIN = "plain dense"

_PART_REPEATS = 9


@dataclass(frozen=True)
class Arm:
    """One way to run the detector.

    Attributes:
        execution: one of ``EXECUTIONS``.
        keep_ratio: what is asked of the pruner, in (0, 1]; 1 for ``dense``, which does not prune.

    Raises:
        ValueError: an unknown execution, or a ratio out of range.
    """

    execution: str
    keep_ratio: float = 1.0

    def __post_init__(self) -> None:
        if self.execution not in EXECUTIONS:
            raise ValueError(
                f"execution must be one of {', '.join(EXECUTIONS)}; got {self.execution!r}"
            )
        ratio = check_keep_ratio(self.keep_ratio)
        # Sweeps over ranges give numbers such as 0.30000000000000004.
        object.__setattr__(self, "keep_ratio", round(ratio, 6) or ratio)
        if self.execution == "dense" and self.keep_ratio != 1.0:
            raise ValueError(f"dense keeps every token: its keep_ratio is 1, got {ratio}")

    @property
    def name(self) -> str:
        """For people, and unique among arms."""
        return "dense" if self.execution == "dense" else f"{self.execution}@{self.keep_ratio:g}"


def plan_arms(executions: Sequence[str], keep_ratios: Sequence[float]) -> tuple[Arm, ...]:
    """Returns every execution at every ratio, each once; ``dense`` once, at ratio 1.

    Raises:
        ValueError: an unknown execution, a ratio out of range, or nothing to measure.
    """
    for keep_ratio in keep_ratios:
        check_keep_ratio(keep_ratio, "keep_ratios")
    arms = [
        Arm(execution, 1.0 if execution == "dense" else keep_ratio)
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
    named = [execution or "dense" for execution in executions]
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


@dataclass(frozen=True)
class Latency:
    """Times of one arm in seconds, and how they compare.

    Attributes:
        median, p10, p90: of the counted calls.
        ratio: this arm's time over the first arm's, the median over the rounds.
        times: of every counted call, in the order of the rounds.
    """

    median: float
    p10: float
    p90: float
    ratio: float
    times: tuple[float, ...]

    def speedup_over(self, other: Latency) -> float:
        """The other arm's time over this one's, the median over the rounds."""
        return statistics.median(a / b for a, b in zip(other.times, self.times, strict=True))


def measure_latency(
    arms: Mapping[str, Callable[[], object]],
    *,
    warmup: int,
    repeats: int,
    synchronize: Callable[[], None],
    clock: Callable[[], float] = time.perf_counter,
    before_round: Callable[[], object] = lambda: None,
    prime: int = 0,
) -> dict[str, Latency]:
    """Times several arms in rounds: each round calls every arm once, in another random order.

    A machine that slows down, or a neighbour that wakes up, then hits all arms alike, and no arm
    always runs after the same other one.

    Args:
        arms: by name; the first is the one that the others are compared with.
        warmup: rounds that are not counted, at least 1.
        repeats: rounds that are counted, at least 1.
        synchronize: waits until the device is idle; called on both ends of every timing.
        clock: seconds.
        before_round: called before every round, off the clock.
        prime: how often each arm is called off the clock before the call that is timed, so that
            caches hold what it uses, and not what the arm before it used.

    Raises:
        ValueError: no arms, or ``warmup`` or ``repeats`` is below 1.
    """
    if not arms or warmup < 1 or repeats < 1:
        raise ValueError(
            "timing needs an arm and at least one round of warmup and of repeats, got "
            f"{len(arms)} arms, warmup = {warmup}, repeats = {repeats}"
        )
    order = list(arms)
    shuffle = random.Random(0).shuffle
    times: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(warmup + repeats):
        shuffle(order)
        before_round()
        for name in order:
            for _ in range(prime):
                arms[name]()
            synchronize()
            start = clock()
            arms[name]()
            synchronize()
            elapsed = clock() - start
            if turn >= warmup:
                times[name].append(elapsed)
    baseline = times[next(iter(arms))]
    return {name: _summarize(own, baseline) for name, own in times.items()}


def measure(
    model: Detector,
    batches: Sequence[Tensor],
    arms: Sequence[Arm],
    *,
    warmup: int = 3,
    repeats: int = 30,
    fuse: bool = False,
) -> list[dict[str, Any]]:
    """Measures arms of a detector on batches: agreement, kept tokens, GFLOPs, time and memory.

    Args:
        model: the detector; it is left in the mode it came in.
        batches: ``[B, 3, H, W]`` in [0, 1], on the model's device; every round takes the next one,
            the same for all arms. Where the count of kept tokens follows the content, one image
            says little about others.
        arms: the first is ``dense``, the one that the others are compared with.
        warmup: forward passes of each arm before the clock counts.
        repeats: forward passes of each arm that are timed.
        fuse: run a copy in its inference form; FLOPs are counted on the model as it is, and its
            dense execution is timed too.

    Returns:
        A row of plain values per arm, in order: ``execution``, ``keep_ratio`` (asked), ``kept``
        (share of the tokens of each level, counted), ``gflops`` (per image, by part, 1 MAC = 2
        FLOPs; the mean over the batches), ``gflops_saved`` (share of the dense total),
        ``latency_ms`` (median, p10, p90 of one forward pass of a batch), ``part_ms`` (by part, and
        ``total``; from fewer passes, with clocks inside), ``speedup`` over dense (of
        the same batch; the median over the rounds), ``speedup_over_plain`` (over the dense
        execution of the network as published; with ``fuse`` only), ``max_difference`` (of this
        execution from dense where nothing is pruned), ``peak_memory_mib`` (None on a CPU), and how
        it was measured.

    Raises:
        ValueError: the first arm is not ``dense``.
        RuntimeError: an execution disagrees with ``dense`` at keep ratio 1, or an arm did not keep
            as many tokens as asked; nothing was timed.
    """
    if not arms or arms[0].execution != "dense":
        raise ValueError(f"the first arm must be dense, got {[arm.name for arm in arms]}")
    device = batches[0].device
    was_training = model.training
    model.eval()
    try:
        runs = copy.deepcopy(model).fuse() if fuse else model
        differences = _differences_from_dense(runs, batches[0], {arm.execution for arm in arms})
        taken = cycle(batches)
        current = [next(taken)]

        def take_next() -> None:
            current[0] = next(taken)

        calls = {arm.name: _call(runs, current, arm) for arm in arms}
        if fuse:
            calls[_PLAIN] = _call(model, current, arms[0])
        outputs = {arm: [_call(runs, [x], arm)() for x in batches] for arm in arms}
        kept = {arm: _count_kept(model, arm, outputs[arm]) for arm in arms}
        gflops = {
            arm: _mean_gflops(
                [
                    count_flops(model, x, execution=arm.execution, keep_ratio=arm.keep_ratio)
                    for x in batches
                ],
                sum(len(x) for x in batches),
            )
            for arm in arms
        }
        latencies = measure_latency(
            calls,
            warmup=warmup,
            repeats=repeats,
            synchronize=synchronizer(device),
            before_round=take_next,
        )
        memory = {arm: _peak_memory_mib(calls[arm.name], device) for arm in arms}
        parts = part_modules(runs)
        part_ms = time_groups(
            [Run(parts, calls[arm.name]) for arm in arms],
            warmup=1,
            repeats=min(repeats, _PART_REPEATS),
            synchronize=synchronizer(device),
            before_round=take_next,
        )
    finally:
        model.train(was_training)
    dense_total = gflops[arms[0]]["total"]
    return [
        {
            "execution": arm.execution,
            "keep_ratio": arm.keep_ratio,
            "kept": kept[arm],
            "gflops": gflops[arm],
            "gflops_saved": 1.0 - gflops[arm]["total"] / dense_total,
            "latency_ms": milliseconds(latencies[arm.name]),
            "part_ms": part_ms[i],
            "speedup": 1.0 / latencies[arm.name].ratio,
            "speedup_over_plain": latencies[arm.name].speedup_over(latencies[_PLAIN])
            if fuse
            else None,
            "max_difference": differences[arm.execution],
            "peak_memory_mib": memory[arm],
            "batch_size": len(batches[0]),
            "image_size": list(batches[0].shape[-2:]),
            "images": sum(len(x) for x in batches),
            "warmup": warmup,
            "repeats": repeats,
            "backend": outputs[arm][0].backend,
            "algorithms": _algorithms(runs, outputs[arm][0]),
            "fused": fuse,
            "environment": environment(device),
        }
        for i, arm in enumerate(arms)
    ]


def open_validation_set(
    data: Mapping[str, Any] | None,
    size: Sequence[int] | None = None,
    class_names: Sequence[str] | None = None,
    view: View | None = None,
) -> CocoDetection:
    """Opens the validation images of a resolved data configuration.

    Args:
        data: as in conf/data, with the key ``val``.
        size: (height, width) instead of the view's.
        class_names: those of the model, which must be the data's; None: not checked.
        view: that of the model, by which it sees these images too; a data configuration that says
            something else is warned of (its limit of pixels holds). None: as the data
            configuration says.

    Raises:
        FileNotFoundError: there is no validation set, or its annotations are not there.
        ValueError: the model knows other classes.
    """
    if not data or data.get("val") is None:
        raise FileNotFoundError(
            "there are no validation images (data.val=null, perhaps of the training); name some "
            "with data= and data.root=, e.g. data=coco data.root=/path"
        )
    val = dict(data["val"])
    if view is not None:
        limit = (val.get("reader") or {}).get("max_pixels", view.reader.max_pixels)
        view = replace(view, reader=replace(view.reader, max_pixels=limit))
        if recorded_view(val) != view:
            _warn_of_other_view(recorded_view(val), view)
        val |= {"transforms": view.as_config(), "reader": reader_config(view.reader)}
    if size is not None:
        val["transforms"] = {**val["transforms"], "size": list(size)}
    dataset = open_dataset(val, "data.val")
    if class_names is not None and list(class_names) != list(dataset.class_names):
        raise ValueError(
            f"the model knows the classes {list(class_names)}, but {dataset.annotations} has "
            f"{list(dataset.class_names)}"
        )
    return dataset


def _warn_of_other_view(said: View | None, view: View) -> None:
    warnings.warn(
        f"pictures are {view}, as the model's validation saw them; the data configuration says "
        f"{said or 'something else'}. Give size=[height,width] for another size",
        stacklevel=3,
    )


def find_validation_set(
    asked: Mapping[str, Any] | None,
    record: Mapping[str, Any],
    size: Sequence[int] | None = None,
    view: View | None = None,
) -> CocoDetection | None:
    """Opens the data that was asked for, else that of a checkpoint's configuration, if it is here.

    Args:
        asked: a resolved data configuration, or None.
        record: the configuration of the detector; the data must have its ``model.class_names``.
        size, view: see `open_validation_set`.

    Raises:
        FileNotFoundError, ValueError: see `open_validation_set`; data that was not asked for may
            be absent, which is told on the terminal.
    """
    data = asked or record.get("data")
    if data is None:
        return None
    try:
        return open_validation_set(data, size, record["model"].get("class_names"), view)
    except FileNotFoundError as error:
        if asked and asked.get("val") is not None:
            raise
        print(f"random images and no AP: {error}")
        return None


def sample_images(dataset: CocoDetection, batch_size: int) -> Tensor:
    """Returns images spread evenly over a data set: ``[B, 3, H, W]`` in [0, 1].

    They are what validation sees, without padding: where a view that keeps the proportions gives
    several sizes, the images are those of the most frequent one, which is told.

    Args:
        dataset: where they come from; its transforms are a ``View``.
        batch_size: B; images repeat where the data set has fewer.
    """
    view = view_of(dataset)
    sizes = [view.size_of(*record.size) for record in dataset.records]
    ((height, width), count) = Counter(sizes).most_common(1)[0]
    if count < len(sizes):
        print(f"images: the {count} of {len(sizes)} that are seen as {height}x{width} pixels")
    own = [i for i, size in enumerate(sizes) if size == (height, width)]
    return torch.stack([dataset[own[i * count // batch_size]][0] for i in range(batch_size)])


def evaluate_arm(
    model: Detector,
    dataset: CocoDetection,
    arm: Arm,
    *,
    batch_size: int,
    max_detections: int = MAX_DETECTIONS,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Returns the numbers of `evaluate`, under a progress bar that names the arm."""
    loader = tqdm(evaluation_loader(dataset, batch_size), desc=f"AP of {arm.name}")
    return evaluate(
        model,
        loader,
        dataset,
        execution=arm.execution,
        keep_ratio=arm.keep_ratio,
        device=device,
        max_detections=max_detections,
        progress=False,
    )


def _summarize(times: Sequence[float], baseline: Sequence[float]) -> Latency:
    deciles = statistics.quantiles(times, n=10, method="inclusive") if len(times) > 1 else times
    ratios = [own / base for own, base in zip(times, baseline, strict=True)]
    return Latency(
        statistics.median(times), deciles[0], deciles[-1], statistics.median(ratios), tuple(times)
    )


def milliseconds(latency: Latency) -> dict[str, float]:
    """Returns a latency as rows hold it: ``median``, ``p10`` and ``p90``."""
    seconds = {"median": latency.median, "p10": latency.p10, "p90": latency.p90}
    return {name: 1e3 * value for name, value in seconds.items()}


def _call(
    model: Detector, current: list[Tensor], arm: Arm, **options: Any
) -> Callable[[], DetectorOutput]:
    """A forward pass of the batch that is the only item of a list."""

    @torch.inference_mode()
    def call() -> DetectorOutput:
        return model(current[0], execution=arm.execution, keep_ratio=arm.keep_ratio, **options)

    return call


def synchronizer(device: torch.device) -> Callable[[], None]:
    """Returns what waits until a device is idle."""
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return lambda: None


def _mean_gflops(counted: Sequence[Mapping[str, Any]], num_images: int) -> dict[str, float]:
    return {
        part: sum(one[part] for one in counted) / num_images
        for part in counted[0]
        if part != "uncounted"
    }


def _algorithms(model: Detector, output: DetectorOutput) -> dict[str, str] | None:
    """How the neck's 3x3 convolutions of each level are computed; None: no choice is made."""
    if output.backend != "cpu" or output.execution != "sparse":
        return None
    weights = [w for w in model.encoder.pan_blocks.parameters() if w.shape[2:] == (3, 3)]
    if not weights:
        return None
    channels_out, channels_in = weights[0].shape[:2]
    return {
        level: chosen_algorithm(Support.from_mask(mask), channels_in, channels_out)
        if model.algorithm == "auto"
        else model.algorithm
        for level, mask in zip(LEVELS, output.kept, strict=True)
    }


def _peak_memory_mib(call: Callable[[], object], device: torch.device) -> float | None:
    """The most memory that one call needs, weights included; every arm starts from a reset."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) / 2**20


def _differences_from_dense(
    model: Detector, images: Tensor, executions: set[str]
) -> dict[str, float]:
    """The largest difference of each execution from ``dense`` where nothing is pruned."""
    dense = _call(model, [images], Arm("dense"))()
    differences = {"dense": 0.0}
    for execution in sorted(executions - {"dense"}):
        # At no progress a cap on the tokens does not hold either.
        unpruned = _call(model, [images], Arm(execution), progress=0.0)()
        difference = _distance(dense, unpruned)
        if not difference <= LARGEST_DIFFERENCE:
            raise RuntimeError(
                f"{execution} at keep ratio 1 differs from dense by {difference:.2g}, more than "
                f"{LARGEST_DIFFERENCE:g}: their times cannot be compared"
            )
        differences[execution] = difference
    return differences


def _distance(first: DetectorOutput, second: DetectorOutput) -> float:
    """The largest distance from a query's logits and box to the nearest of the other output.

    Queries have no fixed order: two of almost the same score may change places.
    """
    one, other = (torch.cat([o.pred_logits, o.pred_boxes], -1).float() for o in (first, second))
    # Not cdist, which overlooks NaN.
    pairs = (one.unsqueeze(2) - other.unsqueeze(1)).abs().amax(-1)
    return torch.cat([pairs.amin(1), pairs.amin(2)], 1).max().item()


def _count_kept(model: Detector, arm: Arm, outputs: Sequence[DetectorOutput]) -> dict[str, float]:
    """The share of the tokens kept on each level, after a check of the count on stride 32.

    A selector that follows the content, a halo, and several levels that decide together keep what
    they keep there.
    """
    kept = torch.cat([out.num_kept for out in outputs]).double().cpu()
    tokens = torch.cat([out.num_tokens for out in outputs]).double().cpu()
    shares = dict(zip(LEVELS, (kept.sum(0) / tokens.sum(0)).tolist(), strict=True))
    asked, selector = tokens[:, -1], model.pruner.selector
    if _prunes_coarsest(model, arm):
        free = isinstance(selector, ByContent) or len(model.pruner.scorer.scored) > 1
        if arm.keep_ratio < 1.0 and (free or model.pruner.halo):
            return shares
        asked = (asked * arm.keep_ratio).round().clamp(selector.min_tokens, selector.max_tokens)
    if ((kept[:, -1] - asked).abs() > 1).any():
        raise RuntimeError(
            f"{arm.name} must keep {asked.tolist()} of {tokens[:, -1].tolist()} tokens of stride "
            f"32 in each image, but kept {kept[:, -1].tolist()}"
        )
    return shares


def _prunes_coarsest(model: Detector, arm: Arm) -> bool:
    if arm.execution == "dense_scatter":
        return 2 in model.pruner.scatter_levels
    return arm.execution != "dense"
