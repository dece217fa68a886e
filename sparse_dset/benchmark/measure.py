"""Measures executions of one detector against each other: same weights, images and process."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from sparse_dset.benchmark.arms import Arm
from sparse_dset.benchmark.flops import count_flops, part_modules
from sparse_dset.benchmark.profile import Run, time_groups
from sparse_dset.benchmark.table import LEVELS
from sparse_dset.benchmark.timing import measure_latency, milliseconds, synchronizer
from sparse_dset.engine.loggers import environment
from sparse_dset.models.detector import Detector, DetectorOutput
from sparse_dset.models.evaluation_mode import switched_to_evaluation
from sparse_dset.models.executions import DENSE, find_execution
from sparse_dset.models.pruner import ByContent
from sparse_dset.ops.backends import AUTO, BACKENDS
from sparse_dset.structures import Support

LARGEST_DIFFERENCE = 1e-3
"""Largest difference of logits and boxes from ``dense`` where nothing is pruned."""


_PLAIN = "plain dense"

_PART_REPEATS = 9


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
    if not arms or arms[0].prunes:
        raise ValueError(f"the first arm must keep every token, got {[arm.name for arm in arms]}")
    with switched_to_evaluation(model):
        runs = copy.deepcopy(model).fuse() if fuse else model
        differences = _differences_from_dense(runs, batches[0], {arm.execution for arm in arms})
        outputs = {arm: [_call(runs, [x], arm)() for x in batches] for arm in arms}
        kept = {arm: _count_kept(model, arm, outputs[arm]) for arm in arms}
        gflops = {arm: _mean_gflops(model, arm, batches) for arm in arms}
        times = _measure_times(model, runs, batches, arms, warmup, repeats)
    shared = {
        "batch_size": len(batches[0]),
        "image_size": list(batches[0].shape[-2:]),
        "images": sum(len(x) for x in batches),
        "warmup": warmup,
        "repeats": repeats,
        "fused": fuse,
        "environment": environment(batches[0].device),
    }
    return _rows(runs, arms, outputs, kept, gflops, differences, times, shared)


def _rows(
    runs: Detector,
    arms: Sequence[Arm],
    outputs: Mapping[Arm, Sequence[DetectorOutput]],
    kept: Mapping[Arm, dict[str, float]],
    gflops: Mapping[Arm, dict[str, float]],
    differences: Mapping[str, float],
    times: Mapping[Arm, dict[str, Any]],
    shared: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Puts together what was measured of each arm."""
    dense_total = gflops[arms[0]]["total"]
    return [
        {
            "execution": arm.execution,
            "keep_ratio": arm.keep_ratio,
            "kept": kept[arm],
            "gflops": gflops[arm],
            "gflops_saved": 1.0 - gflops[arm]["total"] / dense_total,
            "max_difference": differences[arm.execution],
            **times[arm],
            "backend": outputs[arm][0].backend,
            "algorithms": _algorithms(runs, outputs[arm][0]),
            **shared,
        }
        for arm in arms
    ]


def _measure_times(
    model: Detector,
    runs: Detector,
    batches: Sequence[Tensor],
    arms: Sequence[Arm],
    warmup: int,
    repeats: int,
) -> dict[Arm, dict[str, Any]]:
    """Times all arms in turns, as wholes and by part, and asks for their memory.

    Args:
        model: the detector as it is; its dense execution is timed where ``runs`` is another.
        runs: what is timed, the detector itself or its inference form.
        batches, arms, warmup, repeats: see ``measure``.

    Returns:
        What a row says about time and memory.
    """
    taken, device = cycle(batches), batches[0].device
    current = [next(taken)]

    def take_next() -> None:
        current[0] = next(taken)

    calls = {arm.name: _call(runs, current, arm) for arm in arms}
    if runs is not model:
        calls[_PLAIN] = _call(model, current, arms[0])
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
    plain = latencies.get(_PLAIN)
    return {
        arm: {
            "latency_ms": milliseconds(latencies[arm.name]),
            "part_ms": by_part,
            "speedup": 1.0 / latencies[arm.name].ratio,
            "speedup_over_plain": latencies[arm.name].speedup_over(plain) if plain else None,
            "peak_memory_mib": memory[arm],
        }
        for arm, by_part in zip(arms, part_ms, strict=True)
    }


def _call(
    model: Detector, current: list[Tensor], arm: Arm, **options: Any
) -> Callable[[], DetectorOutput]:
    """A forward pass of the batch that is the only item of a list."""

    @torch.inference_mode()
    def call() -> DetectorOutput:
        return model(current[0], execution=arm.execution, keep_ratio=arm.keep_ratio, **options)

    return call


def _mean_gflops(model: Detector, arm: Arm, batches: Sequence[Tensor]) -> dict[str, float]:
    """GFLOPs of an image by part, the mean over the batches."""
    counted = [
        count_flops(model, x, execution=arm.execution, keep_ratio=arm.keep_ratio) for x in batches
    ]
    num_images = sum(len(x) for x in batches)
    return {
        part: sum(one[part] for one in counted) / num_images
        for part in counted[0]
        if part != "uncounted"
    }


def _algorithms(model: Detector, output: DetectorOutput) -> dict[str, str] | None:
    """How the neck's 3x3 convolutions of each level are computed; None: no choice is made."""
    backend = next((known for known in BACKENDS if known.name == output.backend), None)
    if backend is None or backend.algorithms == (AUTO,):
        return None
    if not find_execution(output.execution).counts_kept_sites:
        return None
    weights = [w for w in model.encoder.pan_blocks.parameters() if w.shape[2:] == (3, 3)]
    if not weights:
        return None
    channels_out, channels_in = weights[0].shape[:2]
    chosen = {
        level: backend.chosen_algorithm(Support.from_mask(mask), channels_in, channels_out)
        for level, mask in zip(LEVELS, output.kept, strict=True)
    }
    named = {level: algorithm for level, algorithm in chosen.items() if algorithm is not None}
    if model.algorithm != AUTO:
        named = dict.fromkeys(named, model.algorithm)
    return named or None


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
    dense = _call(model, [images], Arm(DENSE.name))()
    differences = {DENSE.name: 0.0}
    for execution in sorted(executions - {DENSE.name}):
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
    coarsest = len(LEVELS) - 1
    return coarsest in find_execution(arm.execution).pruned_levels(model.pruner.scatter_levels)
