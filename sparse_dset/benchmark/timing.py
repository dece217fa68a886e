"""Times of calls that take turns."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch


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


def synchronizer(device: torch.device) -> Callable[[], None]:
    """Returns what waits until a device is idle."""
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return lambda: None
