"""Shared fixtures."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

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
