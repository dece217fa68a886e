"""Loader processes: who reacts to signals, and how they end."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data import DataLoader
from tqdm import tqdm


def init_worker(_worker: int) -> None:
    """Lets the main process alone react to signals: it ends its workers in order."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def shown_batches(loader: DataLoader, title: str, *, progress: bool) -> Iterator[Any]:
    """Gives the batches of a loader under a progress bar."""
    with batches_of(loader) as batches:
        yield from tqdm(batches, desc=title, total=len(loader), disable=not progress)


@contextmanager
def batches_of(loader: DataLoader) -> Iterator[Iterator[Any]]:
    """Gives the batches of a loader, and ends its workers whatever happens.

    At the end of a program Python sends SIGTERM to its processes and waits for them, for ever where
    they do not react to it. An exception holds on to the iterator, which would end them otherwise.
    """
    batches = iter(loader)
    try:
        yield batches
    finally:
        end_workers = getattr(batches, "_shutdown_workers", None)
        if end_workers is not None:
            end_workers()
