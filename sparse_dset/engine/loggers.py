"""Result rows in a JSON-lines file, and what is known about the machine that made them."""

from __future__ import annotations

import json
import math
import platform
import time
import warnings
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, TypeGuard

import torch

from sparse_dset import native
from sparse_dset.files import append_line
from sparse_dset.ops.costs import prices


def append_row(path: str | Path, row: Mapping[str, Any]) -> None:
    """Appends one JSON line, see `append_line`. NaN and infinity, which JSON lacks, become null.

    Raises:
        TypeError: a value that JSON cannot hold; nothing is written.
        OSError: the disk is full or the like; the rows before are whole.
    """
    append_line(path, json.dumps(_finite(dict(row)), allow_nan=False))


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """Reads a file of JSON lines; lines that a crash cut short are left out with a warning."""
    rows = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            warnings.warn(f"{path}: line {number} is cut short and left out", stacklevel=2)
    return rows


NOT_AVAILABLE = "n/a"
"""What people are shown for a number that is not defined: the AP of a class without objects."""


def shown(value: float | None, spec: str) -> str:
    """Formats a number for people; ``n/a`` where it is not defined (NaN, or null in a row)."""
    return format(value, spec) if is_defined(value) else NOT_AVAILABLE


def is_defined(value: float | None) -> TypeGuard[float]:
    """Whether a number is one: neither NaN nor infinite, nor null in a row."""
    return value is not None and math.isfinite(value)


def now() -> str:
    """The local time, for a result row."""
    return time.strftime("%Y-%m-%dT%H:%M:%S")


def environment(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Versions, hardware and threads, for a result row.

    Args:
        device: the device that computes.

    Returns:
        Keys ``package``, ``commit`` (None outside a git checkout), ``torch``, ``python``,
        ``cpu``, ``instruction_set``, ``costs`` (the prices by which algorithms are chosen),
        ``threads``, ``device``.
    """
    device = torch.device(device)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "package": package_version(),
        "commit": git_commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": cpu_model(),
        "instruction_set": native.instruction_set(),
        "costs": prices(),
        "threads": torch.get_num_threads(),
        "device": gpu or device.type,
    }


def package_version() -> str | None:
    """The installed version of this package, None when it runs from its folder."""
    try:
        return metadata.version("sparse_dset")
    except metadata.PackageNotFoundError:
        return None


@cache
def cpu_model() -> str:
    """The processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


@cache
def git_commit() -> str | None:
    """The commit of the checkout that this file lies in, read without calling git."""
    git = Path(__file__).resolve().parents[2] / ".git"
    return _read_head(git) if git.is_dir() else None


def _read_head(git: Path) -> str | None:
    head = (git / "HEAD").read_text().strip()
    if not head.startswith("ref: "):
        return head
    reference = head.removeprefix("ref: ")
    if (git / reference).exists():
        return (git / reference).read_text().strip()
    packed = git / "packed-refs"
    lines = packed.read_text().splitlines() if packed.exists() else []
    return next((line.split()[0] for line in lines if line.endswith(f" {reference}")), None)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
