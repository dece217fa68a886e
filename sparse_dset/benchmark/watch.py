"""Reads a running total before and after every call of a module."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def watch(
    module: nn.Module, read: Callable[[], Counter[Any]], grown: Counter[Any]
) -> Iterator[None]:
    """Adds to ``grown`` by how much what ``read`` returns grows during the module's calls."""

    def before(*_: Any) -> None:
        grown.subtract(read())

    def after(*_: Any) -> None:
        grown.update(read())

    with module.register_forward_pre_hook(before), module.register_forward_hook(after):
        yield
