"""Compares arms that compute the same thing: outputs first, then times in turns."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparse_dset.benchmark.table import MISSING, Table, measured_with
from sparse_dset.benchmark.timing import measure_latency, milliseconds
from sparse_dset.engine.loggers import environment

PRIME = 3
"""Parts are timed as in a loop over them, their operands near; only whole networks bring their own
neighbours."""


@dataclass(frozen=True)
class Comparison:
    """Arms over the same inputs.

    Attributes:
        name: what is computed.
        make_inputs: draws new inputs; called before every round.
        arms: by name, each called with the inputs; the first is the one that others are compared
            with. All return the same output, or None where it cannot be compared.
        expected: the output to within rounding, in float64; None: the first arm's.
        tolerance: largest difference, as a share of the output's range.
        ideal: the speed-up over the first arm if time followed the FLOPs.
        prime: see ``measure_latency``.
        comparable: brings an output into the form in which outputs are compared, off the clock.
        peers: names of the arms that other libraries compute.
        pruned: names of our arms that do less than the peers do.
        trains: the arms run forward and backward; what they keep in between is counted.
    """

    name: str
    make_inputs: Callable[[], tuple[Any, ...]]
    arms: Mapping[str, Callable[..., Tensor | None]]
    expected: Callable[..., Tensor] | None = None
    tolerance: float = 5e-5
    ideal: float | None = None
    prime: int = 0
    comparable: Callable[[Any], Tensor] = lambda y: y
    peers: Collection[str] = ()
    pruned: Collection[str] = ()
    trains: bool = False

    def role(self, arm: str) -> str:
        """Returns "peer", "pruned" or "ours"."""
        if arm in self.peers:
            return "peer"
        return "pruned" if arm in self.pruned else "ours"


def compare(comparison: Comparison, *, warmup: int, repeats: int) -> list[dict[str, Any]]:
    """Measures a comparison.

    Returns:
        A row per arm: ``case``, ``arm``, ``latency_ms`` (median, p10, p90), ``speedup`` over the
        first arm, ``role`` (peer, pruned or ours), ``of_ideal`` (that over the ideal one),
        ``error`` (largest, as a share of the range), ``saved_mib`` (what a training step keeps for
        its backward pass), and how it was measured.

    Raises:
        RuntimeError: an arm computes something else; nothing was timed.
    """
    errors, ideal = _errors(comparison), comparison.ideal
    inputs = [comparison.make_inputs()]
    saved: dict[str, float | None] = dict.fromkeys(comparison.arms)
    if comparison.trains:
        saved |= {name: _saved_mib(arm, inputs[0]) for name, arm in comparison.arms.items()}

    def renew() -> None:
        inputs[0] = comparison.make_inputs()

    calls = {
        name: (lambda arm=arm: arm(*inputs[0]))  # type: ignore[misc]
        for name, arm in comparison.arms.items()
    }
    latencies = measure_latency(
        calls,
        warmup=warmup,
        repeats=repeats,
        synchronize=lambda: None,
        before_round=renew,
        prime=comparison.prime,
    )
    return [
        {
            "case": comparison.name,
            "arm": name,
            "role": comparison.role(name),
            "latency_ms": milliseconds(latency),
            "speedup": 1.0 / latency.ratio,
            "of_ideal": ideal and 1.0 / latency.ratio / ideal,
            "error": errors[name],
            "saved_mib": saved[name],
            "warmup": warmup,
            "repeats": repeats,
            "prime": comparison.prime,
            "environment": environment(torch.device("cpu")),
        }
        for name, latency in latencies.items()
    ]


def format_comparisons(rows: list[dict[str, Any]], header: bool = True) -> str:
    """Returns rows of ``compare`` as lines of a Markdown table."""
    table = comparisons_table(rows)
    heading = [table.header, ["---"] * len(table.header)] if header else []
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [*heading, *table.lines])


def comparison_notes(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns what belongs under a table of ``compare``'s rows.

    The first line says what they were measured with. A line for each case follows in which another
    library is faster than every arm of ours that does the same work.
    """
    notes = [measured_with(rows)]
    for case in dict.fromkeys(row["case"] for row in rows):
        fastest: dict[str, Mapping[str, Any]] = {}
        for row in rows:
            role = str(row.get("role"))
            if row["case"] == case and (
                role not in fastest or _median(row) < _median(fastest[role])
            ):
                fastest[role] = row
        if {"peer", "ours"} <= fastest.keys():
            peer, ours = fastest["peer"], fastest["ours"]
            if _median(peer) < _median(ours):
                notes.append(
                    f"{case}: fastest: {peer['arm']}, {_digits(_median(peer))} ms, "
                    f"{_median(ours) / _median(peer):.2f}x faster than {ours['arm']} "
                    f"({_digits(_median(ours))} ms)"
                )
    return "".join(f"{note}\n" for note in notes if note)


def _median(row: Mapping[str, Any]) -> float:
    return row["latency_ms"]["median"]


def _digits(value: float) -> str:
    """Returns a number with three digits that count, and without an exponent where it is large."""
    return f"{value:.3g}" if value < 999.5 else f"{value:.0f}"


def comparisons_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Returns a table of rows of ``compare``; the memory only where it was counted."""
    columns = ["case", "arm", "ms", "speed-up", "of ideal", "error", "saved MiB"]
    trains = any(row.get("saved_mib") is not None for row in rows)
    shown = columns if trains else columns[:-1]
    lines = []
    for row in rows:
        ms = row["latency_ms"]
        cells = [
            row["case"],
            row["arm"],
            f"{_digits(ms['median'])} [{_digits(ms['p10'])}-{_digits(ms['p90'])}]",
            f"{row['speedup']:.2f}x",
            *(
                MISSING if row.get(key) is None else format(row[key], style)
                for key, style in (("of_ideal", ".2f"), ("error", ".0e"), ("saved_mib", ".0f"))
            ),
        ]
        lines.append(cells[: len(shown)])
    return Table(shown, lines)


def _saved_mib(arm: Callable[..., object], inputs: tuple[Any, ...]) -> float:
    """The memory that a forward pass keeps for the backward pass, weights left out."""
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        whole = tensor if tensor._base is None else tensor._base
        if not (whole.is_leaf and whole.requires_grad):
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        arm(*inputs)
    return sum(sizes.values()) / 2**20


def _errors(comparison: Comparison) -> dict[str, float | None]:
    inputs = comparison.make_inputs()
    outputs = {name: arm(*inputs) for name, arm in comparison.arms.items()}
    first = next(iter(outputs.values()))
    expected = first if comparison.expected is None else comparison.expected(*inputs)
    if expected is not None:
        expected = comparison.comparable(expected)
    errors: dict[str, float | None] = {}
    for name, output in outputs.items():
        if output is None or expected is None:
            errors[name] = None
            continue
        output = comparison.comparable(output)
        difference = (output.double() - expected.double()).abs().max()
        error = float(difference / expected.abs().max().clamp(min=1e-30))
        if not error <= comparison.tolerance:
            raise RuntimeError(
                f"{comparison.name}: {name} differs by {error:.1e} of the output's range, more "
                f"than {comparison.tolerance:g}: its time cannot be compared"
            )
        errors[name] = error
    return errors
