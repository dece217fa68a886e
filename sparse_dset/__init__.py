"""RT-DETRv2 with token pruning and experts, in which kept tokens stay sparse to the last layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparse_dset.config import build_detector
    from sparse_dset.engine.checkpoint import load_detector

__version__ = "0.1.0"
__all__ = ["build_detector", "load_detector"]


def __getattr__(name: str) -> Any:
    """Imports the heavy parts when they are asked for."""
    if name == "build_detector":
        from sparse_dset.config import build_detector

        return build_detector
    if name == "load_detector":
        from sparse_dset.engine.checkpoint import load_detector

        return load_detector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
