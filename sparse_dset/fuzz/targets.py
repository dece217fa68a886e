"""The targets, and the input of each number."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from random import Random

import torch

from sparse_dset.fuzz import files, functions, operators
from sparse_dset.fuzz.outcome import RESULT, Outcome, outcome_of

Target = Callable[[Random, Path], None]

TARGETS: Mapping[str, Target] = {
    "operators": operators.operator,
    "functions": functions.function,
    "structures": functions.structure,
    "selection": functions.selection,
    "targets": functions.targets,
    "checkpoints": files.checkpoints,
    "annotations": files.coco_files,
    "images": files.images,
    "predict": files.predict,
    "configs": files.configs,
}

SHARES: Mapping[str, int] = {
    "operators": 30, "functions": 20, "structures": 10, "selection": 4, "targets": 4,
    "checkpoints": 7, "annotations": 12, "images": 11, "predict": 1, "configs": 1,
}  # fmt: skip
"""Of a hundred inputs; where one takes a tenth of a second there are few."""


def numbered(numbers: Iterable[int], seed: int, names: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Gives each number with the target that its input is for, which follows from the seed."""
    for number in numbers:
        rng = Random(f"{seed} {number}")
        yield number, rng.choices(list(names), [SHARES.get(name, 1) for name in names])[0]


def perform(number: int, name: str, seed: int) -> Outcome:
    """Makes and runs the input of a number for a target, which follows from all three alone."""
    torch.manual_seed(number)
    return run_target(TARGETS[name], Random(f"{seed} {number} {name}"))


def run_target(target: Target, rng: Random) -> Outcome:
    """Runs one input of a target."""
    try:
        target(rng, _folder())
    except Exception as error:
        return outcome_of(error)
    return Outcome(RESULT)


@functools.cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="sparse_dset_fuzz_"))
