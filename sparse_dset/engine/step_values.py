"""The numbers that a training prints of an optimizer step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparse_dset.engine import distributed


@dataclass(frozen=True)
class PassNumbers:
    """What one forward pass adds to the numbers of its step.

    Attributes:
        losses: by name; a term that the pass does not have is 0.
        num_kept, num_tokens: tokens that were kept, and tokens without padding, of each level.
    """

    losses: dict[str, float]
    num_kept: list[float]
    num_tokens: list[float]


def step_values(passes: Sequence[PassNumbers]) -> dict[str, float]:
    """Returns the numbers of a step, the same in every process.

    Args:
        passes: the forward passes of this process; their losses are parts of the step's.

    Returns:
        ``loss``, all losses together; every loss by its name, the sum over the passes and the mean
        over the processes; ``kept_s3``, ...: the shares of the tokens that were kept.
    """
    everywhere = [one for part in distributed.gather(list(passes)) for one in part]
    losses: dict[str, float] = {}
    for one in everywhere:
        for name, value in one.losses.items():
            losses[name] = losses.get(name, 0.0) + value / distributed.world_size()
    kept = [sum(level) for level in zip(*(one.num_kept for one in everywhere), strict=True)]
    tokens = [sum(level) for level in zip(*(one.num_tokens for one in everywhere), strict=True)]
    shares = {
        f"kept_s{i + 3}": count / max(whole, 1)
        for i, (count, whole) in enumerate(zip(kept, tokens, strict=True))
    }
    return {"loss": sum(losses.values()), **losses, **shares}
