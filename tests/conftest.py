"""Shared fixtures."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

# Hydra shuts all log handlers down, and that of absl, which the runtimes of the peers bring along,
# then closes its stream: that of pytest, which can report nothing any more. This one stays open.
with contextlib.suppress(ImportError):
    from absl import logging as absl_logging

    absl_logging.get_absl_handler().python_handler.stream = sys.__stderr__

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _external(variable: str, folder: str) -> Path:
    path = Path(os.environ.get(variable, SHARED / folder))
    if not path.is_dir():
        pytest.skip(f"{folder} is not here; set {variable} to its folder")
    return path


@pytest.fixture(scope="session")
def aerial_root() -> Path:
    """The folder of the real aerial images (images/ and annotations/)."""
    return _external("SPARSE_DSET_AERIAL", "aerial_vehicles")


@pytest.fixture(scope="session")
def reference_root() -> Path:
    """The folder with names, shapes and answers of the released RT-DETRv2."""
    return _external("SPARSE_DSET_REFERENCE", "rtdetrv2_reference")


@pytest.fixture
def in_two_processes(tmp_path: Path) -> Callable[[Callable[[int], Any]], list[Any]]:
    """Runs ``work(rank)`` in two processes that train together; gives what each returned."""

    def run(work: Callable[[int], Any]) -> list[Any]:
        def start(rank: int) -> None:
            torch.set_num_threads(1)  # a forked process has lost the threads of its parent
            dist.init_process_group(
                "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=rank, world_size=2
            )
            torch.save(work(rank), tmp_path / f"returned_{rank}.pt")
            dist.destroy_process_group()

        torch.multiprocessing.start_processes(start, nprocs=2, start_method="fork")
        return [torch.load(tmp_path / f"returned_{rank}.pt") for rank in (0, 1)]

    return run
