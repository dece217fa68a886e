"""Which backend computes: by name, by object, or the fastest one that is here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from sparse_dset.ops.backends.cpu import Cpu
from sparse_dset.ops.backends.reference import Backend
from sparse_dset.ops.backends.spconv import Spconv

AUTO = "auto"

REFERENCE, CPU, SPCONV = Backend(), Cpu(), Spconv()

BACKENDS: tuple[Backend, ...] = (REFERENCE, CPU, SPCONV)

NAMES = (AUTO, *(backend.name for backend in BACKENDS))

# A constant, so that compiled graphs need not ask.
_FASTEST_ON_CPU = REFERENCE if CPU.problem() else CPU

_chosen: ContextVar[tuple[Backend | None, str]] = ContextVar(
    "backend, algorithm", default=(None, AUTO)
)


def chosen_algorithm() -> str:
    """Returns how this context wants 3x3 convolutions of stride 1 to be computed."""
    return _chosen.get()[1]


def backend_for(x: Tensor) -> Backend:
    """Returns what computes with a tensor in this context, in inference."""
    backend = _chosen.get()[0]
    if backend is not None:
        return backend
    return _FASTEST_ON_CPU if x.is_cpu else REFERENCE


@contextmanager
def use_backend(backend: str | Backend, algorithm: str = AUTO) -> Iterator[None]:
    """Within this context "auto" means this backend, and this algorithm where the stride is 1.

    Args:
        backend: one of ``NAMES``, or an object.
        algorithm: one of the backend's ``algorithms``.

    Raises:
        ValueError: an unknown name.
        ImportError: a backend whose package is missing; the message names it.
    """
    known = find_backend(backend)
    if known is not None:
        _check_usable(known)
    check_algorithm(algorithm, known or _FASTEST_ON_CPU, stride=1)
    token = _chosen.set((known, algorithm))
    try:
        yield
    finally:
        _chosen.reset(token)


def check_algorithm(algorithm: str, backend: Backend, stride: int) -> None:
    """Raises a ValueError if a backend does not know an algorithm, or not at this stride."""
    if algorithm not in backend.algorithms:
        raise ValueError(
            f"unknown algorithm {algorithm!r} of backend {backend.name!r}: choose one of "
            f"{', '.join(backend.algorithms)}"
        )
    if stride == 2 and algorithm.startswith("winograd"):
        raise ValueError(f"algorithm {algorithm!r} needs stride 1: choose auto or indirect")


def available_backends() -> tuple[str, ...]:
    """Returns the names of the backends that can run here."""
    return tuple(name for name, problem in backend_problems().items() if not problem)


def backend_problems() -> dict[str, str]:
    """Returns each backend's name with "" if it can run here, else the reason why not."""
    return {backend.name: backend.problem() for backend in BACKENDS}


def find_backend(backend: str | Backend) -> Backend | None:
    """Returns the backend of a name; None is whatever "auto" means.

    Raises:
        ValueError: no backend is called so; the message lists their names.
    """
    if isinstance(backend, Backend):
        return backend
    for known in BACKENDS:
        if known.name == backend:
            return known
    if backend != AUTO:
        raise ValueError(f"unknown backend {backend!r}: choose one of {', '.join(NAMES)}")
    return None


def resolve_backend(
    backend: str | Backend, device: torch.device | str, dtype: torch.dtype = torch.float32
) -> Backend:
    """Returns the backend that computes on a device.

    Args:
        backend: one of ``NAMES``, or an object. "auto" is what the context says (``use_backend``),
            else the C++ kernels where they are built and compute in a type that is wide enough,
            else the reference, which needs nothing but PyTorch.
        device: where the features are.
        dtype: the type to compute in.

    Raises:
        ValueError: an unknown name, or a device or type that the backend does not have.
        ImportError: a backend whose package is missing; the message names it.
    """
    known = find_backend(backend) or _chosen.get()[0]
    if known is None:
        return _FASTEST_ON_CPU if _FASTEST_ON_CPU.serves(device, dtype) else REFERENCE
    _check_usable(known)
    if not known.serves(device, dtype):
        raise ValueError(
            f"backend {known.name!r} computes {known.served}, not {dtype} on {device}: choose auto "
            "or reference"
        )
    return known


def _check_usable(backend: Backend) -> None:
    reason = backend.problem()
    if reason:
        raise ImportError(f"backend {backend.name!r} cannot run here: {reason}")
