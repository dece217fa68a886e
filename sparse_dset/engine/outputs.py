"""Where a script's files go."""

from __future__ import annotations

import os
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode


def job_folder(output_dir: str | Path) -> Path:
    """Returns the folder of this job's files: under ``-m`` one of its own in ``output_dir``."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return Path(HydraConfig.get().runtime.output_dir)
    return Path(output_dir)


def check_output_dir(path: str | Path) -> None:
    """Checks, before anything is computed, that a folder is there to be written or can be made.

    Raises:
        ValueError: the path or a part of it is a file, or nothing may be written there.
    """
    path = Path(path)
    there = next(part for part in (path, *path.absolute().parents) if os.path.lexists(part))
    if not there.is_dir():
        raise ValueError(f"the output folder {path} cannot be made: {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"the output folder {path} cannot be written: no permission in {there}")
