"""Objects from plain dicts."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from hydra.utils import get_object


def instantiate(node: Any) -> Any:
    """Makes what a plain, resolved configuration describes, from the inside out.

    A dict with ``_target_`` becomes the result of calling that with the dict's other entries, with
    ``_partial_`` the call that is still to come, as `hydra.utils.instantiate` does it. Text is left
    as it is: a class that is called "${x}" or a folder of that name is no interpolation.

    Args:
        node: of dicts, lists and plain values.

    Raises:
        ValueError: a target cannot be found, or does not take one of the entries; whatever the
            target raises is raised as it is.
    """
    if isinstance(node, (list, tuple)):
        return [instantiate(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    entries = {key: instantiate(value) for key, value in node.items()}
    if "_target_" not in entries:
        return entries
    path = entries.pop("_target_")
    partial = entries.pop("_partial_", False)
    try:
        target = get_object(str(path))
    except Exception as error:  # whatever the import of its module raises
        raise ValueError(f"_target_={path} cannot be found: {error}") from error
    if not callable(target):
        raise ValueError(f"_target_={path} is a {type(target).__name__}, which cannot be called")
    _check_entries(path, target, entries, partial)
    return functools.partial(target, **entries) if partial else target(**entries)


def _check_entries(path: str, target: Any, entries: Mapping[str, Any], partial: bool) -> None:
    try:
        signature = inspect.signature(target)
    except ValueError:  # some built-in functions have none
        return
    try:
        (signature.bind_partial if partial else signature.bind)(**entries)
    except TypeError as error:
        known = ", ".join(name for name in signature.parameters)
        raise ValueError(f"{path}: {error}; it takes {known}") from error
