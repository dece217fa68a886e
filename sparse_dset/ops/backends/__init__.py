"""Who computes the operators. A backend of one's own derives from ``Backend``."""

from sparse_dset.ops.backends.choice import (
    AUTO,
    BACKENDS,
    CPU,
    REFERENCE,
    SPCONV,
    available_backends,
    backend_problems,
    find_backend,
    resolve_backend,
    use_backend,
)
from sparse_dset.ops.backends.reference import Backend

__all__ = [
    "AUTO",
    "BACKENDS",
    "CPU",
    "REFERENCE",
    "SPCONV",
    "Backend",
    "available_backends",
    "backend_problems",
    "find_backend",
    "resolve_backend",
    "use_backend",
]
