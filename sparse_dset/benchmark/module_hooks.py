"""Hooks around the calls of a module."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def accumulate_during(
    module: nn.Module, read: Callable[[], Counter[Any]], total: Counter[Any]
) -> Iterator[None]:
    """Adds to a total by how much what ``read`` returns grows during the module's calls."""

    def before(*_: Any) -> None:
        total.subtract(read())

    def after(*_: Any) -> None:
        total.update(read())

    with module.register_forward_pre_hook(before), module.register_forward_hook(after):
        yield
