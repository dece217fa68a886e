"""What is said of the kernels."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from sparse_dset import native


@pytest.mark.parametrize(
    ("pytorch", "name"),
    [("AVX512", "AVX-512"), ("AVX2", "AVX2"), ("DEFAULT", "portable"), ("NEON", "NEON")],
)
def test_without_kernels_the_instruction_set_is_pytorchs(
    pytorch: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "unavailable_reason", lambda: "not built")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: pytorch)
    assert native.instruction_set() == name


@pytest.mark.slow
@pytest.mark.skipif(bool(native.unavailable_reason()), reason=native.unavailable_reason())
def test_the_instruction_set_is_the_one_that_the_kernels_chose() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from sparse_dset import native; print(native.instruction_set())"],
        env={**os.environ, "SPARSE_DSET_CPU_CAPABILITY": "portable"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "portable"
