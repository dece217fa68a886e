"""The C++ kernels: whether they are here, and the one place that loads them."""

from __future__ import annotations

import importlib.util
import warnings

import torch


def _load() -> str:
    spec = importlib.util.find_spec("sparse_dset._C")
    if spec is None or spec.origin is None:
        return (
            "the C++ kernels were not built: install a C++20 compiler and reinstall with "
            "pip install --no-build-isolation"
        )
    try:
        torch.ops.load_library(spec.origin)
    except OSError as error:
        return (
            f"the C++ kernels cannot be loaded ({error}); they fit the PyTorch that they were "
            "built with: reinstall with pip install --no-build-isolation"
        )
    return ""


# A constant, so that compiled graphs do not trace the loading.
_PROBLEM = _load()
if _PROBLEM:
    warnings.warn(f"sparse_dset runs on plain PyTorch, more slowly: {_PROBLEM}", stacklevel=2)


def unavailable_reason() -> str:
    """Returns "" if the kernels are loaded, else why they are not and how to get them."""
    return _PROBLEM


def instruction_set() -> str:
    """Names what the kernels, or without them PyTorch, compute with, e.g. AVX-512 or portable."""
    name = torch.backends.cpu.get_cpu_capability()
    if not unavailable_reason():
        name = torch.ops.sparse_dset.cpu_capability()
    plain = {"AVX512": "AVX-512", "DEFAULT": "portable", "PORTABLE": "portable"}
    return plain.get(name.upper(), name.upper())


def usable(device: torch.device | str) -> bool:
    """Tells whether the kernels are loaded and made for this device."""
    return torch.device(device).type == "cpu" and not unavailable_reason()
