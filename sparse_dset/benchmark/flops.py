"""Counts the FLOPs of a forward pass, part by part (1 multiply-add = 2 FLOPs)."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from sparse_dset.benchmark.module_hooks import accumulate_during
from sparse_dset.models.decoder.deformable_attention import MSDeformableAttention
from sparse_dset.models.detector import Detector
from sparse_dset.models.evaluation_mode import switched_to_evaluation
from sparse_dset.ops.deform_attn import cheaper_order
from sparse_dset.ops.flop_free import multiplies_nothing
from sparse_dset.ops.flops import sampling_flops


def count_flops(
    model: Detector,
    images: Tensor,
    *,
    execution: str | None = None,
    keep_ratio: float | None = None,
    kept: Sequence[Tensor] | None = None,
    padding_mask: Tensor | None = None,
) -> dict[str, Any]:
    """Counts what one forward pass in evaluation really multiplies.

    Matrix products and convolutions count: dense convolutions with all taps (also those on the
    border's zeros), sparse ones, and in the inference form depthwise ones, with their existing
    pairs, attention in full. Elementwise arithmetic, such as folding the normalisation into
    weights, costs nothing; neither do views, reductions, normalisations, pooling, resampling,
    indexing and copies. An operator of any other kind that has no FLOP formula is named with a
    warning.

    Args:
        model: left as it was.
        images, execution, keep_ratio, kept, padding_mask: see ``Detector.forward``.

    Returns:
        GFLOPs of the whole batch (an image's share may depend on the others, as attention pads to
        the fullest image):

        - ``backbone``, ``encoder``, ``neck``, ``decoder``, and ``total``, their sum;
        - ``pruner``, the scorer, which is a part of ``encoder``; zero where it does not run, as in
          the dense execution and with forced tokens;
        - ``sampling``, the bilinear sampling of deformable attention, which is not in ``total``,
          as other FLOP counters leave it out;
        - only where there are some, ``uncounted``: by name, how often each operator ran that may
          multiply and has no formula. What it multiplies is in none of the above.

    Raises:
        RuntimeError: something was multiplied outside these parts.
    """
    parts = {name: Counter[Any]() for name in part_modules(model)}
    sampling = Counter[str]()
    with _counting(model) as (counter, unknown), _by_part(model, counter, parts, sampling):
        model(
            images,
            execution=execution,
            keep_ratio=keep_ratio,
            kept=kept,
            padding_mask=padding_mask,
        )
    _check_complete(parts, _so_far(counter))
    gflops: dict[str, Any] = _add_up(parts, sampling.total())
    if unknown.calls:
        gflops["uncounted"] = dict(unknown.calls)
        warnings.warn(
            f"FLOPs leave out what these operators multiply: {', '.join(sorted(unknown.calls))}; "
            "give each a formula with torch.utils.flop_counter.register_flop_formula",
            stacklevel=2,
        )
    return gflops


@contextmanager
def _by_part(
    model: Detector,
    counter: FlopCounterMode,
    parts: Mapping[str, Counter[Any]],
    sampling: Counter[str],
) -> Iterator[None]:
    """Adds what each part multiplies to its operators, and what is sampled beside it."""
    with ExitStack() as stack:
        for name, modules in part_modules(model).items():
            for module in modules:
                so_far = partial(_so_far, counter)
                stack.enter_context(accumulate_during(module, so_far, parts[name]))
        for module in model.modules():
            if isinstance(module, MSDeformableAttention):
                stack.enter_context(_count_sampling(module, sampling))
        yield


def _add_up(parts: Mapping[str, Counter[Any]], sampling: int) -> dict[str, float]:
    """GFLOPs by part and in all, of FLOPs by part and operator."""
    flops = {name: operators.total() for name, operators in parts.items()}
    flops["encoder"] += flops["pruner"]
    flops["total"] = sum(flops[name] for name in ("backbone", "encoder", "neck", "decoder"))
    flops["sampling"] = sampling
    return {name: count / 1e9 for name, count in flops.items()}


def count_module_flops(
    model: Detector, modules: Mapping[str, nn.Module], images: Tensor, **options: Any
) -> dict[str, dict[str, float]]:
    """Counts what some modules multiply during one forward pass in evaluation.

    Args:
        model: left as it was.
        modules: of the model, by name; one may lie inside another.
        images: see ``Detector.forward``, as are the options.

    Returns:
        GFLOPs of the whole batch per module and operator.
    """
    found = {name: Counter[Any]() for name in modules}
    with _counting(model) as (counter, _), ExitStack() as stack:
        for name, module in modules.items():
            stack.enter_context(accumulate_during(module, partial(_so_far, counter), found[name]))
        model(images, **options)
    return {
        name: {str(operator): count / 1e9 for operator, count in operators.items() if count}
        for name, operators in found.items()
    }


class _UnknownOperators(TorchDispatchMode):
    """Notes the operators that may multiply and have no FLOP formula.

    Attributes:
        calls: how often each ran, by name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls = Counter[str]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if is_uncounted(func):
            self.calls[str(func.overloadpacket)] += 1
        return func(*args, **(kwargs or {}))


def is_uncounted(operator: Any) -> bool:
    """Tells whether an operator, an overload, may multiply something and has no FLOP formula."""
    return operator.overloadpacket not in flop_registry and not multiplies_nothing(operator)


@contextmanager
def _counting(model: nn.Module) -> Iterator[tuple[FlopCounterMode, _UnknownOperators]]:
    # Fused attention kernels are operators that the counter may not know. The counter comes last:
    # it takes composed operators to pieces before the other mode sees them.
    with (
        switched_to_evaluation(model),
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        _UnknownOperators() as unknown,
        FlopCounterMode(display=False) as counter,
    ):
        yield counter, unknown


def part_modules(model: Detector) -> dict[str, list[nn.Module]]:
    """Returns the modules of each part, of which none runs inside another's call."""
    encoder, decoder = model.encoder, model.decoder
    neck = (
        encoder.lateral_convs,
        encoder.fpn_blocks,
        encoder.downsample_convs,
        encoder.pan_blocks,
    )
    return {
        "backbone": [model.backbone],
        "pruner": [model.pruner],
        "encoder": [*encoder.input_proj, *encoder.encoder],
        "neck": [module for modules in neck for module in modules],
        "decoder": [*decoder.input_proj, decoder],  # the projections run before its forward
    }


@contextmanager
def _count_sampling(attention: MSDeformableAttention, sampling: Counter[str]) -> Iterator[None]:
    def add(_module: nn.Module, inputs: tuple[Any, ...], _output: Tensor) -> None:
        query, _, memory = inputs[:3]
        per_query = (attention.num_heads, attention.num_levels, attention.num_points)
        shape = (*query.shape[:2], *per_query)
        channels = attention.value_proj.out_features // attention.num_heads
        dtype = torch.promote_types(query.dtype, torch.float32)
        if attention.lean and cheaper_order(memory.rows, shape, dtype) == "sample_first":
            channels = memory.rows.shape[1]
        sampling["flops"] += sampling_flops(math.prod(shape), channels)

    with attention.register_forward_hook(add):
        yield


def _so_far(counter: FlopCounterMode) -> Counter[Any]:
    return Counter(counter.get_flop_counts().get("Global", {}))


def _check_complete(parts: dict[str, Counter[Any]], everything: Counter[Any]) -> None:
    assigned = Counter[Any]()
    for operators in parts.values():
        assigned.update(operators)
    wrong = {
        str(operator): everything[operator] - assigned[operator]
        for operator in everything | assigned
        if everything[operator] != assigned[operator]
    }
    if wrong:
        raise RuntimeError(
            "every product must fall into one part, but these FLOPs do not (negative: they fall "
            f"into several): {wrong}; name the module that ran them in part_modules"
        )
