"""What each module of a detector costs: products, time, parameters and bytes moved."""

from __future__ import annotations

import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from sparse_dset.benchmark.flops import is_uncounted
from sparse_dset.benchmark.module_hooks import accumulate_during
from sparse_dset.models.detector import Detector
from sparse_dset.models.evaluation_mode import switched_to_evaluation


@dataclass(frozen=True)
class Run:
    """A forward pass whose parts are timed.

    Attributes:
        groups: modules that run in it, by a name for each group; a group may lie inside another.
        call: runs it.
    """

    groups: Mapping[str, Sequence[nn.Module]]
    call: Callable[[], object]


def time_groups(
    runs: Sequence[Run],
    *,
    warmup: int,
    repeats: int,
    synchronize: Callable[[], None] = lambda: None,
    before_round: Callable[[], object] = lambda: None,
) -> list[dict[str, float]]:
    """Times groups of modules within forward passes that take turns.

    Args:
        runs: the forward passes.
        warmup: rounds that are not counted.
        repeats: rounds that are counted.
        synchronize: waits until the device is idle; called on both ends of every timing.
        before_round: called before every round, off the clock.

    Returns:
        Per run the milliseconds of each group, inner modules included, and ``total``; medians over
        the rounds.
    """
    order = list(range(len(runs)))
    shuffle = random.Random(0).shuffle
    samples: list[list[dict[str, float]]] = [[] for _ in runs]
    for turn in range(warmup + repeats):
        shuffle(order)
        before_round()
        for index in order:
            times = _time_once(runs[index], synchronize)
            if turn >= warmup:
                samples[index].append(times)
    return [
        {group: statistics.median(one[group] for one in own) for group in own[0]} for own in samples
    ]


def _time_once(run: Run, synchronize: Callable[[], None]) -> dict[str, float]:
    def read() -> Counter[str]:
        synchronize()
        return Counter(ns=time.perf_counter_ns())

    grown = {name: Counter[str]() for name in run.groups}
    with ExitStack() as stack:
        for name, modules in run.groups.items():
            for module in modules:
                stack.enter_context(accumulate_during(module, read, grown[name]))
        start = read()["ns"]
        run.call()
        total = read()["ns"] - start
    nanoseconds = {**{name: counter["ns"] for name, counter in grown.items()}, "total": total}
    return {name: value / 1e6 for name, value in nanoseconds.items()}


class OperatorLog(TorchDispatchMode):
    """Notes the operators that run, views left out.

    Attributes:
        calls: by operator.
        bytes: of the tensors that it read and wrote, each call's in full: what would move if no
            cache held anything.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls = Counter[str]()
        self.bytes = Counter[str]()
        self._multiplying: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view and func.overloadpacket is not torch.ops.aten._unsafe_view:
            name = str(func.overloadpacket)
            self.calls[name] += 1
            if is_uncounted(func):
                self._multiplying.add(name)
            tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
            self.bytes[name] += sum(x.numel() * x.element_size() for x in tensors)
        return out

    def read(self) -> Counter[str]:
        """Returns the bytes so far, see ``watch``."""
        return Counter(bytes=self.bytes.total())

    def uncounted(self) -> dict[str, dict[str, int]]:
        """Returns ``calls`` and ``bytes`` of the operators that no FLOP counter knows."""
        known = {str(operator) for operator in flop_registry}
        return {
            name: {"calls": self.calls[name], "bytes": moved}
            for name, moved in self.bytes.most_common()
            if name not in known
        }

    def without_formula(self) -> list[str]:
        """Returns those of ``uncounted`` that may multiply, so that FLOPs leave something out."""
        return sorted(self._multiplying)


def log_operators(
    model: Detector, groups: Mapping[str, Sequence[nn.Module]], images: Tensor, **options: Any
) -> tuple[dict[str, int], OperatorLog]:
    """Runs one forward pass and returns the bytes moved per group of modules, and the operators.

    Args:
        model: left as it was.
        groups: modules of the model.
        images: see ``Detector.forward``, as are the options.
    """
    moved = {name: Counter[str]() for name in groups}
    with ExitStack() as stack:
        stack.enter_context(switched_to_evaluation(model))
        stack.enter_context(torch.no_grad())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))  # as where FLOPs are counted
        log = stack.enter_context(OperatorLog())
        for name, modules in groups.items():
            for module in modules:
                stack.enter_context(accumulate_during(module, log.read, moved[name]))
        model(images, **options)
    return {name: counter["bytes"] for name, counter in moved.items()}, log


def count_parameters(modules: Sequence[nn.Module]) -> int:
    """Counts the parameters of some modules, each once."""
    return sum(p.numel() for p in {p for module in modules for p in module.parameters()})


def called_modules(
    model: Detector, depth: int, images: Tensor, **options: Any
) -> dict[str, nn.Module]:
    """Returns the modules whose names have at most ``depth`` parts and that a forward pass calls.

    Args:
        model: left as it was.
        depth: 2 for "encoder.input_proj".
        images: see ``Detector.forward``, as are the options.
    """
    named = {
        name: module for name, module in model.named_modules() if name and name.count(".") < depth
    }
    seen: set[str] = set()
    with switched_to_evaluation(model), torch.no_grad(), ExitStack() as stack:
        for name, module in named.items():
            note = partial(_note, seen, name)
            stack.enter_context(module.register_forward_hook(note))
        model(images, **options)
    return {name: module for name, module in named.items() if name in seen}


def _note(seen: set[str], name: str, *_: Any) -> None:
    seen.add(name)
