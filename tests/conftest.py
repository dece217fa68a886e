"""Shared fixtures."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import pytest
import torch

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
