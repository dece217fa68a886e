"""RT-DETRv2 with token pruning and experts, in which kept tokens stay sparse to the last layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparse_dset.benchmark.flops import count_flops
    from sparse_dset.config import build_criterion, build_detector
    from sparse_dset.engine.checkpoint import load_detector

__version__ = "0.1.0"
__all__ = ["build_criterion", "build_detector", "count_flops", "load_detector"]


def __getattr__(name: str) -> Any:
    """Imports the heavy parts when they are asked for."""
    if name in ("build_criterion", "build_detector"):
        from sparse_dset import config

        return getattr(config, name)
    if name == "count_flops":
        from sparse_dset.benchmark.flops import count_flops

        return count_flops
    if name == "load_detector":
        from sparse_dset.engine.checkpoint import load_detector

        return load_detector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
