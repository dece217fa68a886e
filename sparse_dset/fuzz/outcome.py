"""What came of an input: a result, an error of ours, or a fault."""

from __future__ import annotations

import ast
import functools
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

PACKAGE = Path(__file__).resolve().parents[1]
SHORT = 300

RESULT, OUR_ERROR = "result", "our error"
FOREIGN, CRASH, HANG, MEMORY = "foreign error", "crash", "hang", "memory"
FAULTS = (FOREIGN, CRASH, HANG, MEMORY)
OUTCOMES = (RESULT, OUR_ERROR, *FAULTS)


@dataclass(frozen=True)
class Outcome:
    """What came of an input.

    Attributes:
        kind: one of ``OUTCOMES``.
        message: of an error, with its type; else "".
        where: file and line that an error came from; else "".
    """

    kind: str
    message: str = ""
    where: str = ""


def outcome_of(error: BaseException) -> Outcome:
    """Tells an error that was raised for its reader from one that only happened."""
    file, line = _innermost(error.__traceback__)
    kind = OUR_ERROR if _is_ours(str(error), file, line) else FOREIGN
    message = f"{type(error).__name__}: {error}"[:SHORT]
    return Outcome(kind, message, f"{file}:{line}")


def _is_ours(message: str, file: str, line: int) -> bool:
    # Checks of the C++ operators, and PyTorch's check of the types in an operator's schema.
    if message.startswith("sparse_dset: ") or "sparse_dset::" in message:
        return True
    inside = Path(file).resolve().is_relative_to(PACKAGE) if file else False  # links, too
    return bool(message.strip()) and inside and any(a <= line <= b for a, b in _raises(file))


def _innermost(trace: TracebackType | None) -> tuple[str, int]:
    file, line = "", 0
    while trace is not None:
        file, line = trace.tb_frame.f_code.co_filename, trace.tb_lineno
        trace = trace.tb_next
    return file, line


@functools.cache
def _raises(file: str) -> tuple[tuple[int, int], ...]:
    """First and last lines of all ``raise`` statements of a file."""
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    return tuple(
        (node.lineno, node.end_lineno or node.lineno)
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise)
    )
