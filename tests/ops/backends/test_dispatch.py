"""A build of the kernels is chosen only where all that it was compiled for is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

KERNELS = Path(__file__).parents[3] / "csrc" / "cpu" / "kernels"


@pytest.mark.parametrize("name", ["avx2", "avx512"])
def test_every_instruction_set_is_asked_for(name: str) -> None:
    source = (KERNELS / f"{name}.cpp").read_text()
    compiled_for = re.findall(r'target\("([\w,]+)"\)', source)
    assert len(compiled_for) == 2  # of GCC and of Clang
    asked = set(re.findall(r'__builtin_cpu_supports\("(\w+)"\)', source))
    for targets in compiled_for:
        assert set(targets.split(",")) == asked
