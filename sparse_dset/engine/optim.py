"""AdamW with learning rates for new layers, the pruner and the backbone, and its schedule."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass
from typing import Literal

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from sparse_dset.checks import check_list, check_number


@dataclass(frozen=True)
class OptimConfig:
    """Settings of the optimizer and of the learning-rate schedule.

    Attributes:
        lr: learning rate of everything but the backbone and the pruner.
        backbone_factor: the backbone learns at ``lr * backbone_factor``.
        pruner_factor: the pruner learns at ``lr * pruner_factor``: it is small, new, and alone with
            its loss.
        weight_decay: of matrices and kernels; see `parameter_groups`.
        betas: of AdamW.
        schedule: ``cosine`` falls over all steps after the warm-up, ``flat_cosine`` only after
            ``flat_until`` of them, ``multistep`` is multiplied by ``gamma`` at each milestone.
        warmup_steps: steps of linear warm-up.
        final_factor: where the cosine ends, as a part of ``lr``.
        flat_until: share of the steps, in [0, 1].
        milestones: shares of the steps, ascending, in [0, 1].
        gamma: factor at each milestone.
    """

    lr: float = 1e-4
    backbone_factor: float = 0.1
    pruner_factor: float = 10.0
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Literal["cosine", "flat_cosine", "multistep", "constant"] = "cosine"
    warmup_steps: int = 500
    final_factor: float = 0.01
    flat_until: float = 0.5
    milestones: tuple[float, ...] = (0.8, 0.95)
    gamma: float = 0.1

    def __post_init__(self) -> None:
        # A list from a configuration file becomes a tuple: the value is frozen.
        for name in ("betas", "milestones"):
            check_list(f"optim.{name}", getattr(self, name))
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_number("optim.lr", self.lr, above=0)
        for name in ("backbone_factor", "pruner_factor", "weight_decay", "gamma"):
            check_number(f"optim.{name}", getattr(self, name), at_least=0)
        check_number("optim.warmup_steps", self.warmup_steps, at_least=0, whole=True)
        for name in ("flat_until", "final_factor"):
            check_number(f"optim.{name}", getattr(self, name), at_least=0, at_most=1)
        if len(self.betas) != 2:
            raise ValueError(f"optim.betas must be two numbers, got {self.betas}")
        for beta in self.betas:
            check_number("optim.betas", beta, at_least=0, below=1)
        for milestone in self.milestones:
            check_number("optim.milestones (shares of the steps)", milestone, at_least=0, at_most=1)
        if self.schedule not in ("cosine", "flat_cosine", "multistep", "constant"):
            raise ValueError(
                f"optim.schedule must be cosine, flat_cosine, multistep or constant, "
                f"got {self.schedule!r}"
            )
        if list(self.milestones) != sorted(self.milestones):
            raise ValueError(f"optim.milestones must ascend, got {self.milestones}")


def lr_factor(config: OptimConfig, step: int, total_steps: int) -> float:
    """The factor on the learning rate in a step.

    Args:
        config: the schedule.
        step: 0 for the first step.
        total_steps: steps of the whole training.

    Returns:
        A value in (0, 1]; the first step of a warm-up over ``w`` steps has ``1 / w``.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "multistep":
        return config.gamma ** bisect.bisect_right(config.milestones, step / total_steps)
    start = config.warmup_steps
    if config.schedule == "flat_cosine":
        start = max(start, round(config.flat_until * total_steps))
    done = min(max(step - start, 0) / max(total_steps - start, 1), 1.0)
    cosine = 0.5 * (1.0 + math.cos(math.pi * done))
    return config.final_factor + (1.0 - config.final_factor) * cosine


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict]:
    """Splits the trainable parameters by backbone, pruner or neither, and by weight decay.

    Norms, biases (those of experts have two dimensions) and the decoder's background are not
    decayed.
    """
    factors = {"new": 1.0, "pruner": config.pruner_factor, "backbone": config.backbone_factor}
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = name.partition(".")[0]
            last = name.rpartition(".")[2]
            decays = parameter.dim() >= 2 and not last.startswith(("bias", "background"))
            key = (part if part in factors else "new", decays)
            groups.setdefault(key, []).append(parameter)
    return [
        {
            "name": f"{part}_{'decay' if decay else 'no_decay'}",
            "params": groups[part, decay],
            "lr": config.lr * factor,
            "weight_decay": config.weight_decay if decay else 0.0,
        }
        for part, factor in factors.items()
        for decay in (False, True)
        if (part, decay) in groups
    ]


def build_optimizer(model: nn.Module, config: OptimConfig) -> AdamW:
    """AdamW over `parameter_groups`.

    Raises:
        ValueError: the model has no trainable parameter.
    """
    groups = parameter_groups(model, config)
    if not groups:
        raise ValueError("the model has no parameter with requires_grad")
    return AdamW(groups, lr=config.lr, betas=config.betas)


def build_scheduler(optimizer: Optimizer, config: OptimConfig, total_steps: int) -> LambdaLR:
    """The schedule of `lr_factor`, to be advanced once per optimizer step."""
    return LambdaLR(optimizer, lambda step: lr_factor(config, step, total_steps))
