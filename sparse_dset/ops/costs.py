"""What convolution algorithms cost on this machine: ``python -m sparse_dset.ops.costs``.

The choice of an algorithm compares predicted times, linear in what there is to do: pairs, tiles,
transformed channels, packed weights. The command measures their prices once and keeps them in the
user's cache folder. Whoever measures or trains asks for them (``ops.costs``); without them prices
serve that were measured elsewhere, and importing this package reads no file.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from sparse_dset import native
from sparse_dset.files import write_text
from sparse_dset.ops.backends import CPU
from sparse_dset.structures.grid import enlarged
from sparse_dset.structures.support import Support

COMMAND = "python -m sparse_dset.ops.costs"

MEASURED, COMPILED = "measured", "compiled"

NAMES = ("indirect", "winograd2", "winograd4", "transform2", "transform4", "weight")
"""Prices: a multiply-add of each algorithm, a channel of a transformed tile, a packed weight."""

_COMPILED_PRICES = [] if native.unavailable_reason() else torch.ops.sparse_dset.get_costs()


def cost_file() -> Path:
    """Returns where this machine's prices are kept: ``$XDG_CACHE_HOME/sparse_dset/costs.json``."""
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "sparse_dset" / "costs.json"


def machine() -> str:
    """Names what prices depend on: processor, instruction set, threads."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor()
    capability = torch.ops.sparse_dset.cpu_capability()
    return f"{model}, {capability}, {torch.get_num_threads()} threads"


def load_costs() -> bool:
    """Sets the prices of this machine, if they were measured; tells whether they were."""
    try:
        prices = json.loads(cost_file().read_text())[machine()]
        torch.ops.sparse_dset.set_costs([float(prices[name]) for name in NAMES])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return True


def prices() -> dict[str, float] | None:
    """Returns the prices in use, in nanoseconds; None where there are no kernels to choose for."""
    if native.unavailable_reason():
        return None
    return dict(zip(NAMES, torch.ops.sparse_dset.get_costs(), strict=True))


def prepare_cpu(threads: int | None, costs: str = MEASURED) -> None:
    """Sets PyTorch's CPU threads, and by which prices an algorithm is chosen.

    Args:
        threads: None keeps them.
        costs: "measured": the prices of this machine and so many threads, where some were measured;
            "compiled": those that are compiled in.

    Raises:
        ValueError: prices of another kind.
    """
    if costs not in (MEASURED, COMPILED):
        raise ValueError(f"ops.costs must be {MEASURED} or {COMPILED}, got {costs!r}")
    if threads is not None:
        torch.set_num_threads(threads)
    if native.unavailable_reason():
        return
    if costs == COMPILED or not load_costs():
        torch.ops.sparse_dset.set_costs(_COMPILED_PRICES)


def measure_costs(repeats: int = 15) -> dict[str, float]:
    """Measures prices in nanoseconds, in about ten seconds."""
    work, times = [], []
    flush = torch.zeros(16 * 2**20)  # floats: what a network's other layers push out of the caches
    with torch.inference_mode(False), torch.no_grad():
        for channels in (32, 64, 128, 256):
            weight = torch.randn(channels, channels, 3, 3)
            for support in _supports():
                features = torch.randn(support.num_sites, channels)
                for algorithm in NAMES[:3]:
                    elapsed = _time(features, weight, support, algorithm, repeats, flush)
                    row = _work(support, channels, algorithm)
                    # Divided by the time: a relative error counts alike for short and long calls.
                    work.append([amount / elapsed for amount in row])
                    times.append(1.0)
    prices, _ = nnls(np.array(work), np.array(times))
    return dict(zip(NAMES, prices.tolist(), strict=True))


def _supports() -> list[Support]:
    torch.manual_seed(0)
    supports = []
    for side in (20, 40, 80):
        for keep in (0.1, 0.5, 1.0):
            blocks = torch.rand(1, side // 4, side // 4) < keep
            blocks[0, 0, 0] = True
            supports.append(enlarged(blocks, 4))
            supports.append(torch.rand(1, side, side) < keep)
            supports[-1][0, 0, 0] = True
    return [Support.from_mask(mask, CPU.tables) for mask in supports]


def _time(
    features: Tensor, weight: Tensor, support: Support, algorithm: str, repeats: int, flush: Tensor
) -> float:
    """The median time of a call in nanoseconds, with caches as cold as within a network."""
    arguments = features, weight, None, support.neighbors(), support.row_map(), algorithm, "none"
    times = []
    for _ in range(repeats):
        flush.add_(1.0)
        start = time.perf_counter_ns()
        torch.ops.sparse_dset.sparse_conv2d_cpu(*arguments)
        times.append(time.perf_counter_ns() - start)
    return statistics.median(times[2:])


def _work(support: Support, channels: int, algorithm: str) -> list[float]:
    """How much of each price a call pays, in the order of NAMES."""
    mask = support.mask().float().unsqueeze(1)
    tiles = {
        size: int(torch.nn.functional.max_pool2d(mask, size, ceil_mode=True).sum())
        for size in (2, 4)
    }
    products = channels**2
    pairs = int((support.neighbors() >= 0).sum())
    if algorithm == "indirect":
        return [pairs * products, 0, 0, 0, 0, 9 * products]
    if algorithm == "winograd2":
        return [0, 16 * tiles[2] * products, 0, tiles[2] * 2 * channels, 0, 16 * products]
    return [0, 0, 36 * tiles[4] * products, 0, tiles[4] * 2 * channels, 36 * products]


def main() -> None:
    """Measures and keeps this machine's prices."""
    if native.unavailable_reason():
        raise SystemExit(native.unavailable_reason())
    prices = measure_costs()
    path = cost_file()
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        known = {}
    write_text(path, json.dumps({**known, machine(): prices}, indent=1))
    print(f"{machine()}: {path}")
    for name, price in prices.items():
        print(f"  {name:12} {price:.3g} ns")


if __name__ == "__main__":
    main()
