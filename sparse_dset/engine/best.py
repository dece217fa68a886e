"""The best evaluation of a training, and when to stop waiting for a better one."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Best:
    """The best evaluation so far.

    Attributes:
        result: (1 where pruning had set in, else 0; AP). Pruned results are not comparable with
            those of the dense warm-up: they always win. Negative: there is none yet.
        stale: evaluations since then, of those with pruning at its target.
    """

    result: tuple[float, float] = (-1.0, -1.0)
    stale: int = 0

    @property
    def exists(self) -> bool:
        """Whether there is one."""
        return self.result[1] >= 0

    def after(self, score: float, progress: float) -> Best:
        """Returns the best evaluation after another one.

        Args:
            score: AP in [0, 1]; NaN where it is n/a, which is never the best and says nothing
                about whether the model still improves.
            progress: how far pruning has come, in [0, 1].
        """
        if not math.isfinite(score):
            return self
        result = (float(progress > 0), score)
        if result > self.result:
            return Best(result)
        return Best(self.result, self.stale + 1) if progress == 1.0 else self
