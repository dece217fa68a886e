"""Memory that the kernels keep for the next results is given back when nobody needs it any more."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sparse_dset import native

_RUN = """
import torch
from sparse_dset.ops import pointwise_conv

def resident():
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith("VmRSS")).split()[1]) / 1024

def run(rows, times):
    x, weight = torch.rand(rows, 64), torch.rand(256, 64)
    with torch.no_grad():
        for _ in range(times):
            held = [pointwise_conv(x, weight, None) for _ in range(4)]

run(2_000, 200)
before = resident()
run(100_000, 2)  # 400 MiB at a time
run(2_000, 1_500)
print(resident() - before)
"""


@pytest.mark.skipif(bool(native.unavailable_reason()), reason=native.unavailable_reason())
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_one_large_picture_does_not_hold_memory_for_good() -> None:
    done = subprocess.run([sys.executable, "-c", _RUN], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 100
