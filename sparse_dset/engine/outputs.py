"""Where a script's files go."""

from __future__ import annotations

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode


def job_folder(output_dir: str | Path) -> Path:
    """Returns the folder of this job's files: under ``-m`` one of its own in ``output_dir``."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return Path(HydraConfig.get().runtime.output_dir)
    return Path(output_dir)
