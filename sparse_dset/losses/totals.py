"""What the losses of an optimizer step are divided by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor


class StepTotals:
    """The numbers of objects, cells, tokens and sites that the losses of a step are means over.

    A step may have several forward passes, in several processes. Each pass divides its sums by the
    totals of the whole step, so that its passes add up to the losses of one large batch.

    Args:
        given: the totals of the step, as ``over_the_step`` adds them up; None: this forward pass
            is the only one of its process, and the processes add up when a loss asks.

    Attributes:
        own: what this forward pass has counted, by name.
    """

    def __init__(self, given: Mapping[str, Tensor] | None = None) -> None:
        self._given = given
        self.own: dict[str, Tensor] = {}

    def total(self, name: str, own: Tensor) -> Tensor:
        """Returns the total over all forward passes and processes of the step.

        Args:
            name: of what is counted; it is the same in every process.
            own: what this forward pass has counted, of any shape.
        """
        self.own[name] = own.detach()
        return over_processes(own) if self._given is None else self._given[name]

    def divisor(self, name: str, own: Tensor) -> Tensor:
        """Returns what a sum over this forward pass is divided by; see ``total``.

        It is the total, at least 1, per process: gradients and printed losses are means over the
        processes.
        """
        return self.total(name, own).clamp(min=1.0) / _num_processes()

    def mean(self, name: str, own: Tensor) -> Tensor:
        """Returns the total per process; see ``total``."""
        return self.total(name, own) / _num_processes()


def over_processes(own: Tensor) -> Tensor:
    """Returns the sum over all processes, without a gradient."""
    total = own.detach().clone()
    if _num_processes() > 1:
        dist.all_reduce(total)
    return total


def over_the_step(passes: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Adds up what the forward passes of a step have counted, in all processes.

    Args:
        passes: ``StepTotals.own`` of every forward pass of this process, one at least.
    """
    shapes = {name: value.shape for name, value in passes[0].items()}
    if not shapes:
        return {}
    flat = torch.stack([torch.cat([one[n].float().flatten() for n in shapes]) for one in passes])
    parts = over_processes(flat.sum(0)).split([shape.numel() for shape in shapes.values()])
    return {name: part.view(shapes[name]) for name, part in zip(shapes, parts, strict=True)}


def _num_processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
