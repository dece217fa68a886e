"""The 3x3 convolution over kept sites: argument checks and the choice of a backend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from sparse_dset import native
from sparse_dset.checks import check_tensor, needs_gradient
from sparse_dset.ops import cpu, spconv_backend
from sparse_dset.ops.activations import activate, check_activation
from sparse_dset.ops.reference import sparse_conv2d_reference
from sparse_dset.structures.support import Support

BACKENDS = ("auto", "reference", "cpu", "spconv")

_chosen: ContextVar[tuple[str, str]] = ContextVar("backend, algorithm", default=("auto", "auto"))


def chosen() -> tuple[str, str]:
    """Returns what "auto" means in this context: a backend and an algorithm, perhaps "auto" too."""
    return _chosen.get()


@contextmanager
def use_backend(backend: str, algorithm: str = "auto") -> Iterator[None]:
    """Within this context "auto" means this backend, and this algorithm where the stride is 1.

    Args:
        backend: one of ``BACKENDS``.
        algorithm: one of ``cpu.ALGORITHMS``; backends other than "cpu" know "auto" only.

    Raises:
        ValueError: an unknown name.
        ImportError: a backend whose package is missing; the message names it.
    """
    _check_algorithm(algorithm, resolve_backend(backend, "cpu"), stride=1)
    token = _chosen.set((backend, algorithm))
    try:
        yield
    finally:
        _chosen.reset(token)


def available_backends() -> tuple[str, ...]:
    """Returns the names of the backends that can run here."""
    return tuple(name for name, problem in backend_problems().items() if not problem)


def backend_problems() -> dict[str, str]:
    """Returns each backend's name with "" if it can run here, else the reason why not."""
    return {name: _problem(name) for name in BACKENDS[1:]}


def _problem(backend: str) -> str:
    if backend == "cpu":
        return native.unavailable_reason()
    return spconv_backend.unavailable_reason() if backend == "spconv" else ""


def resolve_backend(
    backend: str, device: torch.device | str, dtype: torch.dtype = torch.float32
) -> str:
    """Returns the name of the backend that runs on a device.

    Args:
        backend: one of ``BACKENDS``. "auto" is "cpu", the C++ kernels, where they are built and
            compute in a type that is wide enough, else "reference", which needs nothing but
            PyTorch.
        device: where the features are.
        dtype: the type to compute in.

    Raises:
        ValueError: an unknown name, or a device or type that the backend does not have.
        ImportError: a backend whose package is missing; the message names it.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}: choose one of {', '.join(BACKENDS)}")
    if backend == "auto":
        backend = _chosen.get()[0]
    if backend == "auto":
        fits = native.usable(device) and cpu.supports_dtype(dtype)
        return "cpu" if fits else "reference"
    reason = _problem(backend)
    if reason:
        raise ImportError(f"backend {backend!r} cannot run here: {reason}")
    if backend == "cpu" and not (torch.device(device).type == "cpu" and cpu.supports_dtype(dtype)):
        raise ValueError(
            f"backend 'cpu' computes float32 and half types on a CPU, not {dtype} on {device}: "
            "choose auto or reference"
        )
    return backend


def sparse_conv2d(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    support: Support,
    stride: int = 1,
    out_support: Support | None = None,
    algorithm: str = "auto",
    backend: str = "auto",
    activation: str = "none",
) -> Tensor:
    """Convolves kept sites with a 3x3 kernel and padding 1; sites that are not kept read zero.

    Stride 1 is the submanifold convolution of Graham et al., "3D Semantic Segmentation with
    Submanifold Sparse Convolutional Networks", 2018. Stride 2 is evaluated at the sites of
    ``out_support`` alone, so that it never dilates.

    Args:
        features: ``[N, C_in]``, rows in the order of ``support.indices``.
        weight: ``[C_out, C_in, 3, 3]``, as ``nn.Conv2d`` holds it.
        bias: ``[C_out]`` or None.
        support: where the rows lie.
        stride: 1 or 2.
        out_support: for stride 2 the sites of the coarser level; for stride 1 None or ``support``.
        algorithm: one of ``cpu.ALGORITHMS``; the other backends know "auto" only.
        backend: one of ``BACKENDS``.
        activation: applied to the sum, one of ``activations.ACTIVATIONS``.

    Returns:
        ``[N_out, C_out]``, in autocast's dtype under autocast, else in the wider dtype of features
        and weight.

    Raises:
        ValueError: an argument that does not fit; the message names it.
        ImportError: a backend whose package is missing.
    """
    check_activation(activation)
    target = target_of(support, stride, out_support)
    _check_tensors(features, weight, bias, support)
    dtype = _compute_dtype(features, weight)
    backend = resolve_backend(backend, features.device, dtype)
    _check_algorithm(algorithm, backend, stride)
    if algorithm == "auto" and stride == 1:
        algorithm = _chosen.get()[1]
    if not features.dtype == weight.dtype == dtype:
        features, weight = features.to(dtype), weight.to(dtype)
    if bias is not None and bias.dtype != dtype:
        bias = bias.to(dtype)
    if backend == "cpu":
        # A fused activation hides what its gradient needs.
        fused = "none" if needs_gradient(features, weight, bias) else activation
        out = cpu.sparse_conv2d_cpu(
            features, weight, bias, support, stride, target, algorithm, fused
        )
        return out if fused == activation else activate(out, activation)
    if backend == "spconv":
        out = spconv_backend.sparse_conv2d_spconv(features, weight, support, stride, target)
    else:
        table = support.neighbors() if stride == 1 else target.strided_neighbors(support)
        out = sparse_conv2d_reference(features, weight, table)
    return activate(out if bias is None else out + bias, activation)


def _check_algorithm(algorithm: str, backend: str, stride: int) -> None:
    known = cpu.ALGORITHMS if backend == "cpu" else ("auto",)
    if algorithm not in known:
        raise ValueError(
            f"unknown algorithm {algorithm!r} of backend {backend!r}: choose one of "
            f"{', '.join(known)}"
        )
    if stride == 2 and algorithm.startswith("winograd"):
        raise ValueError(f"algorithm {algorithm!r} needs stride 1: choose auto or indirect")


def target_of(support: Support, stride: int, out_support: Support | None) -> Support:
    """Returns where a convolution's output lies.

    Raises:
        ValueError: the stride is not 1 or 2, or the output's support does not go with it.
    """
    if stride not in (1, 2):
        raise ValueError(f"stride must be 1 or 2, got {stride}")
    if stride == 2:
        if out_support is None:
            raise ValueError("out_support must name the sites to evaluate when stride is 2")
        return out_support
    if out_support is not None and not out_support.same_sites(support):
        raise ValueError(
            f"out_support must be None or the support itself when stride is 1, got {out_support} "
            f"for {support}"
        )
    return support


def _check_tensors(features: Tensor, weight: Tensor, bias: Tensor | None, support: Support) -> None:
    check_features(features, support)
    check_tensor("weight", weight, "[C_out, C_in, 3, 3]", "float", features.device)
    if weight.shape[1:] != (features.shape[1], 3, 3):
        raise ValueError(
            f"weight must be [C_out, {features.shape[1]}, 3, 3], got {tuple(weight.shape)}"
            + "; a 1x1 convolution is a linear layer" * (weight.shape[2:] == (1, 1))
        )
    check_bias(bias, weight)


def check_features(features: Tensor, support: Support) -> None:
    """Raises a ValueError if these are not the rows of a support."""
    check_tensor("features", features, "[N, C_in]", "float", support.device)
    if len(features) != support.num_sites or not features.shape[1]:
        raise ValueError(
            f"features must be [{support.num_sites}, C_in] for {support}, "
            f"got {tuple(features.shape)}"
        )


def check_bias(bias: Tensor | None, weight: Tensor) -> None:
    """Raises a ValueError if a bias does not go with a weight ``[C_out, ...]``."""
    if bias is not None:
        check_tensor("bias", bias, "[C_out]", "float", weight.device)
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be [{weight.shape[0]}], got {tuple(bias.shape)}")


def _compute_dtype(features: Tensor, weight: Tensor) -> torch.dtype:
    dtype = torch.promote_types(features.dtype, weight.dtype)
    device = features.device.type
    # As PyTorch's own operators under autocast, float64 is left alone.
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return dtype
