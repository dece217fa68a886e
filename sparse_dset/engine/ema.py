"""The exponential moving average of a model's weights."""

from __future__ import annotations

import copy
import math
from itertools import chain
from typing import Any

import torch
from torch import nn

from sparse_dset.checks import check_number
from sparse_dset.ops.segment import widened


class ModelEMA:
    """Averages the weights over the steps of training; the average is what gets evaluated.

    The decay of update ``n`` is ``decay * (1 - exp(-n / tau))``, so that the first averages
    follow the weights closely instead of remembering the initial values.

    Args:
        model: the model to follow; it is copied, in evaluation mode and without gradients.
        decay: the decay after the warm-up, in [0, 1).
        tau: length of the warm-up in updates; 0 for none.

    Attributes:
        model: the averaged model; half types are averaged, and kept, in float32.
        updates: how many updates were made.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999, tau: float = 2000.0) -> None:
        check_number("decay", decay, at_least=0, below=1)
        check_number("tau", tau, at_least=0)
        # The steps of an average are too small for half types.
        self.model = copy.deepcopy(model).eval().requires_grad_(False)._apply(widened)
        self.decay = decay
        self.tau = tau
        self.updates = 0

    def decay_at(self, update: int) -> float:
        """The decay used in update number ``update`` (the first is 1)."""
        return self.decay * (1.0 - math.exp(-update / self.tau)) if self.tau else self.decay

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Moves the average towards the model's parameters and floating-point buffers.

        The running statistics of BatchNorm are averaged too: those of the last steps are those of
        other weights. Whole numbers are copied.
        """
        self.updates += 1
        weight = 1.0 - self.decay_at(self.updates)
        own, theirs = (chain(m.parameters(), m.buffers()) for m in (self.model, model))
        for average, value in zip(own, theirs, strict=True):
            if average.is_floating_point():
                average.lerp_(value.to(average.device, average.dtype), weight)
            else:
                average.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """The averaged weights (``model``) and the number of updates."""
        return {"model": dict(self.model.state_dict()), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what `state_dict` gave; tensors go to the device of the average."""
        self.model.load_state_dict(state["model"])
        self.updates = state["updates"]
