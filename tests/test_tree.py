"""What holds of every file: names in one place, sizes, and imports that change nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from sparse_dset.models import executions
from sparse_dset.ops import backends

ROOT = Path(__file__).parents[1]
PACKAGE = sorted((ROOT / "sparse_dset").rglob("*.py"))
CODE = [*PACKAGE, *sorted((ROOT / "scripts").glob("*.py"))]
FILES = [*CODE, *sorted((ROOT / "tests").rglob("*.py"))]

LONGEST_MODULE, LONGEST_FUNCTION = 400, 60


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def _relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _compared(tree: ast.AST) -> Iterator[ast.Constant]:
    """Constants that something is compared with, alone or in a collection, or matched with."""
    for node in ast.walk(tree):
        sides: list[ast.AST] = []
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            sides = [node.value]
        for side in sides:
            parts = side.elts if isinstance(side, ast.Tuple | ast.List | ast.Set) else [side]
            yield from (part for part in parts if isinstance(part, ast.Constant))


def _compared_names(names: set[str], outside: str) -> list[str]:
    return [
        f"{_relative(path)}:{constant.lineno}: {constant.value}"
        for path in CODE
        if not _relative(path).startswith(outside)
        for constant in _compared(_tree(path))
        if constant.value in names
    ]


def test_comparisons_are_found() -> None:
    code = "a == 'x'\nb in ('y', 'z')\nmatch c:\n    case 'v': ...\nd = {'w': 1}\ne('u')\n"
    assert {constant.value for constant in _compared(ast.parse(code))} == {"x", "y", "z", "v"}


def test_no_execution_is_compared_by_name() -> None:
    names = set(executions.NAMES) - {"auto"}  # which much else is called
    assert _compared_names(names, "sparse_dset/models/executions.py") == []


def test_no_backend_is_compared_by_name() -> None:
    # A device is called "cpu" too: there it is compared with "cuda" or is a device's type.
    names = {backend.name for backend in backends.BACKENDS} - {backends.CPU.name}
    assert _compared_names(names, "sparse_dset/ops/backends/") == []


def test_the_kernels_backend_is_named_in_one_file() -> None:
    calls = [
        f"{_relative(path)}:{keyword.value.lineno}"
        for path in CODE
        for call in ast.walk(_tree(path))
        if isinstance(call, ast.Call)
        for keyword in call.keywords
        if keyword.arg == "backend" and isinstance(keyword.value, ast.Constant)
    ]
    assert calls == []


def test_files_and_functions_are_read_at_a_glance() -> None:
    long = []
    for path in FILES:
        lines = len(path.read_text().splitlines())
        long += [f"{_relative(path)}: {lines} lines"] * (lines > LONGEST_MODULE)
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno is not None
                lines = node.end_lineno - node.lineno + 1
                long += [f"{_relative(path)}: {node.name}: {lines}"] * (lines > LONGEST_FUNCTION)
    assert long == []


_IMPORT = """
import importlib, os, pkgutil, sys

import hydra, matplotlib, matplotlib.font_manager, scipy.optimize, timm, torch, torchvision
import pycocotools, torch.utils.tensorboard, tqdm
try:
    import transformers  # a peer's
except ImportError:
    pass

mine = os.path.abspath(sys.argv[1])
known = (sys.prefix, sys.base_prefix, mine, "/proc", "/sys", "/usr/lib", "/dev")
opened = []

def note(event, arguments):
    if event == "open" and isinstance(arguments[0], str):
        path = os.path.abspath(arguments[0])
        if not path.startswith(known) or "w" in str(arguments[1]):
            opened.append(path)

before = dict(os.environ), torch.get_num_threads(), torch.get_rng_state().tolist()
sys.addaudithook(note)
import sparse_dset
for module in pkgutil.walk_packages(sparse_dset.__path__, "sparse_dset."):
    if not module.name.endswith(("_C", "__main__")):
        importlib.import_module(module.name)
after = dict(os.environ), torch.get_num_threads(), torch.get_rng_state().tolist()
assert after == before
assert not opened, opened
"""


def test_importing_reads_and_changes_nothing_of_the_outside() -> None:
    done = subprocess.run(
        [sys.executable, "-B", "-c", _IMPORT, str(ROOT)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
