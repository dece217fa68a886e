"""Processes that train together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def in_two_processes(work: Callable[[int], Any], folder: Path) -> list[Any]:
    """Runs ``work(rank)`` in two processes that train together; gives what each returned.

    Args:
        folder: an empty one, where they meet.
    """

    def start(rank: int) -> None:
        torch.set_num_threads(1)  # a forked process has lost the threads of its parent
        meeting = f"file://{folder}/rendezvous"
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
        torch.save(work(rank), folder / f"returned_{rank}.pt")
        dist.destroy_process_group()

    torch.multiprocessing.start_processes(start, nprocs=2, start_method="fork")
    return [torch.load(folder / f"returned_{rank}.pt") for rank in (0, 1)]
