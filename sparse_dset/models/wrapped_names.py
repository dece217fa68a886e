"""Names of tensors that were saved from a wrapped model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")

_PREFIXES = ("module.", "_orig_mod.")


def without_wrappers(
    state: Mapping[str, T], own: Mapping[str, object] | None = None
) -> dict[str, T]:
    """Takes out of names what wrappers put in front: torch.compile, DDP, and both at once.

    ``torch.compile`` adds ``_orig_mod.`` in front of the names of whatever it wraps, a part of a
    model too; DDP and averaged models add ``module.`` in front of all.

    Args:
        state: name -> tensor.
        own: names that the model really has; these stay as they are.

    Raises:
        ValueError: two names become the same.
    """
    plain: dict[str, T] = {}
    for name, value in state.items():
        short = name if own is not None and name in own else _without(name)
        if short in plain:
            raise ValueError(
                f"the state dict has {short} twice, with and without the prefix of a wrapper "
                f"({', '.join(_PREFIXES)}): save the state dict of the model itself"
            )
        plain[short] = value
    return plain


def _without(name: str) -> str:
    name = name.replace("._orig_mod.", ".")
    while name.startswith(_PREFIXES):
        name = name.partition(".")[2]
    return name
