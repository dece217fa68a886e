"""What ends a training before its last step: limits of steps and time, and signals."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from sparse_dset.engine.hook import Hook, Stop
from sparse_dset.engine.loop import Trainer


class Limits(Hook):
    """Stops a training, which can be resumed then.

    Args:
        max_steps: after this optimizer step, counted from the very start; None: no limit.
        max_minutes: after so many minutes of this run; None: no limit.
    """

    def __init__(self, max_steps: int | None, max_minutes: float | None) -> None:
        self.max_steps = max_steps
        self.max_minutes = max_minutes
        self._started = time.monotonic()
        self._first_step = 0

    @contextmanager
    def during_training(self, trainer: Trainer) -> Iterator[None]:
        self._started, self._first_step = time.monotonic(), trainer.step
        yield

    def wants_stop(self, trainer: Trainer) -> Stop:
        minutes = (time.monotonic() - self._started) / 60.0
        late = self.max_minutes is not None and minutes >= self.max_minutes
        late = late and trainer.step > self._first_step  # every run gets on
        enough = self.max_steps is not None and trainer.step >= self.max_steps
        return Stop.SOON if late or enough else Stop.NO


class Signals(Hook):
    """Lets SIGTERM and SIGINT end a training orderly; a second one interrupts at once.

    Raises:
        SystemExit: when the state is written, with the code of the signal.
    """

    def __init__(self) -> None:
        self._received: list[int] = []

    @contextmanager
    def during_training(self, trainer: Trainer) -> Iterator[None]:
        self._received.clear()
        numbers = (signal.SIGTERM, signal.SIGINT)
        previous = {number: signal.signal(number, self._note) for number in numbers}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        if self._received:
            raise SystemExit(128 + self._received[0])

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self._received:
            raise KeyboardInterrupt
        self._received.append(number)

    def wants_stop(self, trainer: Trainer) -> Stop:
        return Stop.NOW if self._received else Stop.NO
