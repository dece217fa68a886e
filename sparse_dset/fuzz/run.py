"""Runs inputs in a process of their own, so that whatever they do is told and the run goes on."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from sparse_dset.fuzz.outcome import CRASH, FAULTS, HANG, MEMORY, OUTCOMES, Outcome

LOOK_EVERY = 0.02
"""Seconds between two looks at a busy worker's memory."""

START_SECONDS = 120.0


@dataclass(frozen=True)
class Limits:
    """What one input may use.

    Attributes:
        seconds: of time.
        megabytes: of memory that its process holds more than at its start.
    """

    seconds: float = 20.0
    megabytes: float = 1500.0


class Worker:
    """A process that runs one input after the other, and is replaced when one ends it."""

    def __init__(self, perform: Callable[[int, str], Outcome], limits: Limits) -> None:
        self._perform, self._limits = perform, limits
        self._process: ForkServerProcess | None = None
        self._connection: Connection | None = None
        self._base = 0.0

    def run(self, number: int, target: str) -> Outcome:
        """Returns what came of an input."""
        connection, process = self._start()
        start = time.monotonic()
        connection.send((number, target))
        while True:
            try:
                if connection.poll(LOOK_EVERY):
                    return connection.recv()
            except (EOFError, ConnectionError):
                process.join(10)
                return self._end(Outcome(CRASH, f"the process ended: {process.exitcode}"))
            grown = _megabytes(process.pid) - self._base
            if grown > self._limits.megabytes:
                return self._end(Outcome(MEMORY, f"{grown:.0f} MB more than at the start"))
            if time.monotonic() - start > self._limits.seconds:
                return self._end(Outcome(HANG, f"no answer in {self._limits.seconds:g} s"))

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._process = self._connection = None

    def _end(self, outcome: Outcome) -> Outcome:
        self.close()
        return outcome

    def _start(self) -> tuple[Connection, ForkServerProcess]:
        if self._connection is None or self._process is None:
            # Its server has imported what a worker needs, and computed nothing.
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["sparse_dset.fuzz.targets"])
            self._connection, theirs = context.Pipe()
            self._process = context.Process(
                target=_serve, args=(theirs, self._perform), daemon=True
            )
            self._process.start()
            theirs.close()
            if not self._connection.poll(START_SECONDS):
                raise RuntimeError(f"a worker did not start within {START_SECONDS:g} s")
            self._connection.recv()
            self._base = _megabytes(self._process.pid)
        return self._connection, self._process


def _serve(connection: Connection, perform: Callable[[int, str], Outcome]) -> None:
    """Answers inputs with outcomes until the other end closes."""
    import warnings

    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    connection.send("ready")
    while True:
        try:
            number, target = connection.recv()
        except EOFError:
            return
        connection.send(perform(number, target))


def _megabytes(pid: int | None) -> float:
    """The memory of a process, without what it shares; 0 where the system does not tell."""
    try:
        resident, shared = Path(f"/proc/{pid}/statm").read_text().split()[1:3]
    except (OSError, ValueError):
        return 0.0
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE") / 2**20


def run_inputs(
    inputs: Iterable[tuple[int, str]],
    perform: Callable[[int, str], Outcome],
    limits: Limits,
    seconds: float | None = None,
) -> Iterator[dict[str, Any]]:
    """Runs inputs and gives a row for each.

    Args:
        inputs: the number and the target of each.
        perform: makes and runs an input; it must be picklable.
        limits: what an input may use.
        seconds: stop after so long; None: at the end.
    """
    worker, start = Worker(perform, limits), time.monotonic()
    try:
        for number, target in inputs:
            if seconds is not None and time.monotonic() - start > seconds:
                return
            outcome = worker.run(number, target)
            row = {"number": number, "target": target, "outcome": outcome.kind}
            if outcome.message:
                row |= {"message": outcome.message, "where": outcome.where}
            yield row
    finally:
        worker.close()


def count_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """A table in Markdown: how many inputs of each target came to what."""
    counts = Counter((row["target"], row["outcome"]) for row in rows)
    targets = sorted({target for target, _ in counts})
    lines = [
        f"| target | inputs | {' | '.join(OUTCOMES)} |",
        "|---|" + "---:|" * (1 + len(OUTCOMES)),
    ]
    for name in [*targets, "all"]:
        numbers = [
            sum(n for (target, kind), n in counts.items() if kind == o and name in (target, "all"))
            for o in OUTCOMES
        ]
        lines.append(f"| {name} | {sum(numbers)} | {' | '.join(map(str, numbers))} |")
    return "\n".join(lines)


def faults(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows of inputs that came to something that must not be."""
    return [row for row in rows if row["outcome"] in FAULTS]
