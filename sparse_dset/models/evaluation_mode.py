"""Evaluation of a model that others may train, or evaluate, at the same time."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MethodType
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from torch import nn

Model = TypeVar("Model", bound=nn.Module)

# How often each thread, by its number, runs a model's own modules in evaluation.
_running: WeakKeyDictionary[nn.Module, Counter[int]] = WeakKeyDictionary()
_change = threading.Condition()

_SHARED = frozenset(vars(nn.Module())) - {"_modules"}  # parameters, buffers, hooks


@contextmanager
def evaluation(model: Model) -> Iterator[Model]:
    """Gives a model in evaluation, and changes nothing of the one that it is asked for.

    A model of which every module is in evaluation is given itself. Of another one it is a twin:
    other modules with the same parameters, buffers and hooks. So threads may predict with a model
    that is in training mode, which it stays in, while another one goes on to train it.
    """
    thread = threading.get_ident()
    with _change:
        is_ready = not any(module.training for module in model.modules())
        if is_ready:
            _running.setdefault(model, Counter())[thread] += 1
    try:
        yield model if is_ready else _twin(model)
    finally:
        if is_ready:
            with _change:
                _running[model][thread] -= 1
                _change.notify_all()


@contextmanager
def change_of_mode(model: nn.Module) -> Iterator[None]:
    """Waits until no other thread is within ``evaluation`` of the model, and keeps them out."""
    thread = threading.get_ident()

    def is_idle() -> bool:
        return not any(n for other, n in _running.get(model, {}).items() if other != thread)

    with _change:
        _change.wait_for(is_idle)
        yield


@contextmanager
def switched_to_evaluation(model: nn.Module) -> Iterator[None]:
    """Within this context the model itself is in evaluation; then all modules are as they were.

    For one thread alone, where something is done to the modules themselves, as watching them.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _twin(model: Model) -> Model:
    """Returns the same model, of other modules, in evaluation."""
    twins: dict[nn.Module, nn.Module] = {m: m.__new__(type(m)) for m in model.modules()}
    for module, twin in twins.items():
        twin.__dict__.update(module.__dict__)
        for name in twin.__dict__.keys() - _SHARED:
            twin.__dict__[name] = _of_twins(twin.__dict__[name], twins)
        twin.__dict__["training"] = False
        twin.__dict__["_compiled_call_impl"] = None  # it calls the module that it was made of
    return twins[model]  # type: ignore[return-value]


def _of_twins(value: Any, twins: Mapping[nn.Module, nn.Module]) -> Any:
    """Returns what a module holds, with the twins in the place of modules."""
    if isinstance(value, nn.Module):
        return twins.get(value, value)
    if isinstance(value, MethodType) and isinstance(value.__self__, nn.Module):
        return MethodType(value.__func__, twins.get(value.__self__, value.__self__))
    parts: list[Any] | dict[Any, Any]
    if type(value) in (list, tuple):
        parts = [_of_twins(part, twins) for part in value]
        changed = any(a is not b for a, b in zip(parts, value, strict=True))
        return type(value)(parts) if changed else value
    if isinstance(value, dict):
        parts = {key: _of_twins(part, twins) for key, part in value.items()}
        changed = any(parts[key] is not part for key, part in value.items())
        return parts if changed else value
    return value
