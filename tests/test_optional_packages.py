"""The package without its optional parts."""

from __future__ import annotations

import subprocess
import sys

import pytest

SMOKE = """
import sys
for name in {hidden!r}:
    sys.modules[name] = None
import torch
from sparse_dset import build_detector
from sparse_dset.ops import available_backends, segment_mean, sparse_conv2d
from sparse_dset.structures import Support

model = build_detector("nano", 2, pretrained=False).eval()
for execution in ("dense", "sparse"):
    out = model(torch.rand(1, 3, 64, 64), execution=execution, keep_ratio=0.5)
    assert out.pred_logits.isfinite().all()
index = torch.tensor([0, 0, 2])
print(segment_mean(torch.tensor([1.0, 3.0, 5.0]), index, 3).tolist())
print(available_backends())
support = Support.full(1, 4, 4)
try:
    sparse_conv2d(torch.rand(16, 8), torch.rand(8, 8, 3, 3), None, support, backend="spconv")
except ImportError as error:
    print(error)
"""


@pytest.mark.slow
def test_runs_without_spconv_and_torch_scatter() -> None:
    hidden = ["spconv", "torch_scatter", "cumm"]
    done = subprocess.run(
        [sys.executable, "-c", SMOKE.format(hidden=hidden)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "[2.0, 0.0, 5.0]" in done.stdout
    message = done.stdout.splitlines()[-1]
    assert "spconv-cu120" in message
    assert "2.3.6" in message
    assert "pip install" in message


WITHOUT_KERNELS = """
import importlib.util, warnings
find, hidden = importlib.util.find_spec, "sparse_dset._C"
importlib.util.find_spec = lambda name, *rest: None if name == hidden else find(name, *rest)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch
    from sparse_dset import build_detector

    model = build_detector("nano", 2, pretrained=False).eval()
    out = model(torch.rand(1, 3, 64, 64), execution="sparse", keep_ratio=0.5)
assert out.backend == "reference" and out.pred_logits.isfinite().all()
print(*(w.message for w in caught if "sparse_dset" in str(w.message)), sep="\\n")
"""


@pytest.mark.slow
def test_one_warning_tells_that_the_kernels_are_missing() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_KERNELS],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (warning,) = done.stdout.splitlines()
    assert "runs on plain PyTorch" in warning
    assert "install a C++20 compiler" in warning
