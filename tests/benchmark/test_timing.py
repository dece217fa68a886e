from __future__ import annotations

from collections.abc import Callable

import pytest

from sparse_dset.benchmark.timing import measure_latency


class Clock:
    """A clock that only arms move, so that nothing here depends on the machine."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pending = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def arm(self, name: str, seconds: float, first: float | None = None) -> Callable[[], None]:
        """Launches work that only ``synchronize`` waits for."""

        def call() -> None:
            is_first = name not in self.calls
            self.calls.append(name)
            self.now += 0.0001
            self.pending += first if is_first and first is not None else seconds

        return call

    def synchronize(self) -> None:
        self.now += self.pending
        self.pending = 0.0


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
def test_latency_is_of_the_work_and_not_of_the_launch_or_the_first_call(names) -> None:
    clock = Clock()
    work = {"a": clock.arm("a", 0.020, first=1.0), "b": clock.arm("b", 0.005, first=3.0)}
    found = measure_latency(
        {name: work[name] for name in names},
        warmup=1,
        repeats=9,
        synchronize=clock.synchronize,
        clock=clock,
    )
    assert list(found) == list(names)
    assert found["a"].median == pytest.approx(0.0201)
    assert found["b"].p90 == pytest.approx(0.0051)
    assert found[names[0]].ratio == 1.0
    expected = 0.0051 / 0.0201 if names[0] == "a" else 0.0201 / 0.0051
    assert found[names[1]].ratio == pytest.approx(expected)


def test_rounds_call_every_arm_once_in_changing_order() -> None:
    clock = Clock()
    arms = {name: clock.arm(name, 0.01) for name in "abc"}
    measure_latency(arms, warmup=2, repeats=10, synchronize=clock.synchronize, clock=clock)
    rounds = [tuple(clock.calls[i : i + 3]) for i in range(0, 36, 3)]
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len(set(rounds)) > 2


def test_the_ratio_is_paired_so_a_machine_that_slows_down_does_not_bend_it() -> None:
    clock = Clock()

    def drifting(factor: float) -> Callable[[], None]:
        def call() -> None:
            clock.pending += factor * (1 + len(clock.calls) // 2)
            clock.calls.append("x")

        return call

    found = measure_latency(
        {"base": drifting(1.0), "half": drifting(0.5)},
        warmup=1,
        repeats=11,
        synchronize=clock.synchronize,
        clock=clock,
    )
    assert found["half"].ratio == pytest.approx(0.5)
    assert found["base"].p10 < found["base"].median < found["base"].p90


@pytest.mark.parametrize("bad", [{"warmup": 0}, {"repeats": 0}, {"arms": {}}])
def test_timing_without_warmup_or_repeats_is_refused(bad: dict) -> None:
    options = {"arms": {"a": lambda: None}, "warmup": 1, "repeats": 1, **bad}
    with pytest.raises(ValueError, match="at least one round"):
        measure_latency(**options, synchronize=lambda: None)
