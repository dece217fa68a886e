"""Where the compute goes: each part computed, counted and measured, and what each step saves."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn

from sparse_dset.audit.closed_form import closed_form_flops
from sparse_dset.benchmark.arms import Arm
from sparse_dset.benchmark.flops import count_flops, count_module_flops, part_modules
from sparse_dset.benchmark.profile import (
    Run,
    called_modules,
    count_parameters,
    log_operators,
    time_groups,
)
from sparse_dset.benchmark.table import LEVELS, by_part
from sparse_dset.benchmark.timing import synchronizer
from sparse_dset.config import build_from_config, compose_config
from sparse_dset.engine.loggers import environment
from sparse_dset.models.detector import Detector, DetectorOutput
from sparse_dset.models.evaluation_mode import switched_to_evaluation
from sparse_dset.models.executions import find_execution

PARTS = ("backbone", "pruner", "encoder", "neck", "decoder")

FORMS = ("published", "inference")
"""The network as published, and what ``Detector.fuse`` makes of it by exact algebra."""

_LATE = {
    "stage": "s5",
    "levels": ["s5"],
    "local": 0,
    "context": 1,
    "finest": "s5",
    "scatter_levels": ["s5"],
}
"""DSET's decision: after the backbone, by a scorer that sees stride 32 alone."""


@dataclass(frozen=True)
class _Variant:
    """One arm in one form."""

    form: str
    arm: Arm
    model: Detector

    @property
    def options(self) -> dict[str, Any]:
        """What the forward pass is told."""
        ratio = self.arm.keep_ratio if self.arm.prunes else None
        return {"execution": self.arm.execution, "keep_ratio": ratio}

    @torch.inference_mode()
    def run(self, images: Tensor) -> DetectorOutput:
        return self.model(images, **self.options)


def audit(
    model: Detector,
    config: Mapping[str, Any],
    images: Tensor,
    arms: Sequence[Arm],
    *,
    batch_size: int | None = None,
    depth: int = 4,
    warmup: int = 2,
    repeats: int = 7,
) -> list[dict[str, Any]]:
    """Audits arms of a detector, each in both ``FORMS``.

    Args:
        model: left as it was.
        config: what ``model`` was built from.
        images: ``[N, 3, H, W]`` in [0, 1], on the model's device.
        arms: executions and keep ratios.
        batch_size: how many images run together; the rounds of timing take the batches in turns.
            None: all.
        depth: of the modules that are listed, how many parts their names have at most.
        warmup, repeats: rounds of timing, in which all arms and forms take turns.

    Returns:
        A row per form and arm:

        - ``parts``: of each of ``PARTS`` ``gflops`` (counted) and ``gflops_computed`` (by the
          closed form; None for the inference form, and where the backbone has none), both per
          image, ``ms`` per batch, ``parameters``, and ``mib_moved`` per image (inputs and outputs
          of every operator);
        - ``total``: the same of the whole forward pass, which is more than the parts only in its
          ``ms`` (masks, tables of neighbours) and ``mib_moved``;
        - ``sampling_gflops``, which no counter counts, see ``count_flops``;
        - ``modules``: the same but ``gflops_computed`` by name, inner modules included;
        - ``uncounted``: ``calls`` and ``bytes`` of the operators that no FLOP counter knows, and
          ``without_formula``: the names of those that may multiply something all the same;
        - ``kept``: the share of the tokens on each level, and how all was measured.
    """
    with switched_to_evaluation(model), torch.no_grad():
        forms = dict(zip(FORMS, (model, copy.deepcopy(model).fuse()), strict=True))
        variants = [_Variant(form, arm, forms[form]) for form in forms for arm in arms]
        batches = images.split(batch_size or len(images))
        groups = [_groups(variant, batches[0], depth) for variant in variants]
        times, inner_times = (
            _time_in_turns(variants, own, batches, warmup, repeats)
            for own in ([part_modules(variant.model) for variant in variants], groups)
        )
        return [
            {
                **_row(variant, config, batches, own, part_ms, module_ms),
                "warmup": warmup,
                "repeats": repeats,
                "environment": environment(images.device),
            }
            for variant, own, part_ms, module_ms in zip(
                variants, groups, times, inner_times, strict=True
            )
        ]


def _time_in_turns(
    variants: Sequence[_Variant],
    groups: Sequence[Mapping[str, Sequence[nn.Module]]],
    batches: Sequence[Tensor],
    warmup: int,
    repeats: int,
) -> list[dict[str, float]]:
    """Times groups of modules of each variant; every round takes the next batch."""
    turns = cycle(batches)
    current = [batches[0]]

    def take_next() -> None:
        current[0] = next(turns)

    def run_of(variant: _Variant) -> Callable[[], object]:
        return lambda: variant.run(current[0])

    return time_groups(
        [Run(own, run_of(s)) for s, own in zip(variants, groups, strict=True)],
        warmup=warmup,
        repeats=repeats,
        synchronize=synchronizer(batches[0].device),
        before_round=take_next,
    )


def _groups(variant: _Variant, images: Tensor, depth: int) -> dict[str, list[nn.Module]]:
    found = called_modules(variant.model, depth, images, **variant.options)
    return {name: [module] for name, module in found.items()}


def _row(
    variant: _Variant,
    config: Mapping[str, Any],
    batches: Sequence[Tensor],
    groups: Mapping[str, list[nn.Module]],
    part_ms: Mapping[str, float],
    module_ms: Mapping[str, float],
) -> dict[str, Any]:
    model, num_images = variant.model, sum(map(len, batches))
    outputs = [variant.run(images) for images in batches]
    counts = [
        _counts(variant, config, images, out, groups)
        for images, out in zip(batches, outputs, strict=True)
    ]
    counted, computed, moved, flops = map(_summed, zip(*counts, strict=True))
    _, log = log_operators(model, {}, batches[0], **variant.options)
    parts = part_modules(model)
    everything = [module for modules in parts.values() for module in modules]

    def costs(name: str, gflops: float, ms: float, modules: Sequence[nn.Module]) -> dict[str, Any]:
        return {
            "gflops": gflops / num_images,
            "ms": ms,
            "parameters": count_parameters(modules),
            "mib_moved": moved[name] / num_images / 2**20,
        }

    return {
        "form": variant.form,
        "execution": variant.arm.execution,
        "keep_ratio": variant.arm.keep_ratio,
        "kept": dict(zip(LEVELS, _shares(outputs), strict=True)),
        "image_size": list(batches[0].shape[-2:]),
        "batch_size": len(batches[0]),
        "num_images": num_images,
        "parts": {
            part: {
                **costs(f"part {part}", counted[part], part_ms[part], parts[part]),
                "gflops_computed": computed[part] / num_images if computed else None,
            }
            for part in PARTS
        },
        "total": {
            # Not the whole model: some heads are for training alone.
            **costs("everything", counted["total"], part_ms["total"], everything),
            "gflops_computed": computed["total"] / num_images if computed else None,
        },
        "sampling_gflops": counted["sampling"] / num_images,
        "modules": {
            name: costs(name, flops[name], module_ms[name], modules)
            for name, modules in groups.items()
        },
        "uncounted": log.uncounted(),
        "without_formula": log.without_formula(),
        "backend": outputs[0].backend,
    }


def _counts(
    variant: _Variant,
    config: Mapping[str, Any],
    images: Tensor,
    out: DetectorOutput,
    groups: Mapping[str, list[nn.Module]],
) -> tuple[Mapping[str, float], ...]:
    """Returns GFLOPs by part, counted and computed, bytes by part and module, GFLOPs by module."""
    model, options = variant.model, variant.options
    counted = by_part(count_flops(model, images, **options))
    counted.pop("uncounted", None)
    watched = {f"part {name}": modules for name, modules in part_modules(model).items()}
    moved, log = log_operators(model, {**groups, **watched}, images, **options)
    modules = {name: module for name, (module,) in groups.items()}
    flops = count_module_flops(model, modules, images, **options)
    return (
        counted,
        _computed(variant, config, out) or {},
        {**moved, "everything": log.bytes.total()},
        {name: sum(operators.values()) for name, operators in flops.items()},
    )


def _summed(counts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(one[name] for one in counts) for name in counts[0]}


def _computed(
    variant: _Variant, config: Mapping[str, Any], out: DetectorOutput
) -> dict[str, float] | None:
    if variant.form == "inference":
        return None
    try:
        return by_part(closed_form_flops(config, out.kept, out.execution))
    except ValueError:  # a backbone whose arithmetic is not written down
        return None


def _shares(outputs: Sequence[DetectorOutput]) -> list[float]:
    kept, tokens = (
        sum(getattr(out, name).sum(0) for out in outputs) for name in ("num_kept", "num_tokens")
    )
    return (kept / tokens).tolist()


@torch.no_grad()
def audit_steps(
    model: Detector,
    config: Mapping[str, Any],
    images: Tensor,
    keep_ratio: float,
    batch_size: int | None = None,
) -> list[dict[str, Any]]:
    """Counts what is left after each step from zero-filled pruning to an early decision.

    All steps keep the tokens that ``model`` keeps; the scorer of each is counted too.

    Args:
        model, config, images, batch_size: see `audit`.
        keep_ratio: in (0, 1].

    Returns:
        A row per step: ``step``, ``keep_ratio``, ``kept``, ``gflops`` per image, by part, with
        their ``total``, and ``gflops_saved``, the share of the dense total. Rows whose step starts
        with "floor" keep a single cell of stride 32: what no pruning removes. The sparse neck alone
        is no execution of its own: its parts are those of two. There are no rows of an early
        decision where the backbone cannot be run in two parts.
    """
    batches = images.split(batch_size or len(images))
    with switched_to_evaluation(model):
        kept = [model(x, execution="sparse", keep_ratio=keep_ratio).kept for x in batches]
    one = [_one_cell(masks) for masks in kept]
    late = _Counter(config, {**config["model"]["pruner"], **_LATE}, batches)
    fused = late.fused()
    dense, sparse = late.count("dense", kept), late.count("sparse", kept)
    steps = {
        "dense": dense,
        "stride 32 pruned, zero-filled": late.count("dense_scatter", kept),
        "sparse neck": {**sparse, "decoder": dense["decoder"]},
        "sparse decoder": sparse,
        "exact algebra": fused.count("sparse", kept),
    }
    floors = {"floor, late decision": fused.count("sparse", one)}
    try:
        early = _Counter(config, _early_pruner(model, config), batches).fused()
        steps["early decision"] = early.count("sparse", kept)
        floors["floor, early decision"] = early.count("sparse", one)
    except ValueError:
        pass
    whole = [[torch.ones_like(mask) for mask in masks] for masks in kept]
    masks = dict.fromkeys(steps, kept) | dict.fromkeys(floors, one) | {"dense": whole}
    return [
        {
            "step": name,
            "keep_ratio": keep_ratio,
            "kept": {
                level: float(torch.cat(same_level).float().mean())
                for level, same_level in zip(LEVELS, zip(*masks[name], strict=True), strict=True)
            },
            "num_images": len(images),
            "image_size": list(images.shape[-2:]),
            "gflops": {**parts, "total": sum(parts.values())},
            "gflops_saved": 1.0 - sum(parts.values()) / sum(dense.values()),
        }
        for name, parts in {**steps, **floors}.items()
    ]


def _early_pruner(model: Detector, config: Mapping[str, Any]) -> Mapping[str, Any]:
    if model.pruner.is_early:
        return config["model"]["pruner"]
    return compose_config("detector", ["pruner=early"])["model"]["pruner"]


def _one_cell(kept: Sequence[Tensor]) -> list[Tensor]:
    masks = [torch.zeros_like(mask) for mask in kept]
    for mask, side in zip(masks, (4, 2, 1), strict=True):
        mask[:, :side, :side] = True
    return masks


class _Counter:
    """Counts the parts of a network with random weights, with forced tokens and its scorer."""

    def __init__(
        self, config: Mapping[str, Any], pruner: Mapping[str, Any], batches: Sequence[Tensor]
    ) -> None:
        settings = {**pruner, "selector": "topk", "calibration": None, "score_by": "learned"}
        settings["offsets"] = None  # of levels that may not decide here
        model = {**config["model"], "pruner": settings}
        self.model = build_from_config({"model": model}, pretrained=False).eval()
        self.model.to(batches[0].device)
        self.batches = batches
        self.num_images = sum(map(len, batches))
        # It costs the same whatever is kept, and does not run where tokens are forced.
        one = count_flops(self.model, batches[0], execution="sparse", keep_ratio=0.5)["pruner"]
        self.scorer = one / len(batches[0])

    def fused(self) -> _Counter:
        """Returns the same of the inference form."""
        other = copy.copy(self)
        other.model = copy.deepcopy(self.model).fuse()
        return other

    def count(self, execution: str, kept: Sequence[Sequence[Tensor]]) -> dict[str, float]:
        """Returns GFLOPs per image of each of ``PARTS``; ``kept`` holds the masks of each batch."""
        counts = [
            by_part(count_flops(self.model, images, execution=execution, kept=masks))
            for images, masks in zip(self.batches, kept, strict=True)
        ]
        gflops = {part: sum(one[part] for one in counts) / self.num_images for part in PARTS}
        return {**gflops, "pruner": self.scorer if find_execution(execution).prunes else 0.0}
