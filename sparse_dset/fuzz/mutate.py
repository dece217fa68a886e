"""Random changes of tensors, numbers, bytes and nested values."""

from __future__ import annotations

import copy
import math
from random import Random
from typing import Any

import torch
from torch import Tensor

NUMBERS = (-1, 0, 1, 2, 3, 4, 5, 7, 64, -7, 1000, 2**31, 2**40, -(2**63), 2**63 - 1)
WORDS = (
    "",
    "auto",
    "none",
    "relu",
    "reference",
    "winograd2",
    "winograd4",
    "indirect",
    "{x}",
    "ä%s",
)
DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.int64,
    torch.int8, torch.uint8, torch.bool, torch.complex64,
)  # fmt: skip
JUNK: tuple[Any, ...] = (
    None, True, -1, 0, 10**30, 1e308, math.nan, math.inf, "", "1", "ä\n{}", "1e999", [], {},
    [[]], {"x": []}, [1, 2, 3, 4], "../..", -0.0, 2**63,
)  # fmt: skip


def changed_tensor(rng: Random, x: Tensor) -> Tensor:
    """A tensor with another type, shape, layout, device or content."""
    return x if x.layout != torch.strided else rng.choice(_CHANGES)(rng, x)


def _dtype(rng: Random, x: Tensor) -> Tensor:
    return x.to(rng.choice(DTYPES))


def _rank(rng: Random, x: Tensor) -> Tensor:
    if x.dim() and rng.random() < 0.5:
        return x.flatten() if rng.random() < 0.5 else x.select(0, 0) if len(x) else x.sum()
    return x.unsqueeze(rng.randint(0, x.dim()))


def _size(rng: Random, x: Tensor) -> Tensor:
    if not x.dim():
        return x
    axis = rng.randrange(x.dim())
    kind = rng.random()
    if kind < 0.35:
        return x.narrow(axis, 0, max(0, x.shape[axis] - rng.randint(1, 2)))
    if kind < 0.7:
        return torch.cat([x, x.narrow(axis, 0, min(1, x.shape[axis]))], axis)
    return x.narrow(axis, 0, 0)


def _strides(rng: Random, x: Tensor) -> Tensor:
    kind = rng.randrange(4)
    if kind == 0 and x.dim() > 1:  # the same values behind other strides
        order = list(range(x.dim()))
        rng.shuffle(order)
        back = [order.index(axis) for axis in range(x.dim())]
        return x.permute(order).contiguous().permute(back)
    if kind == 1 and x.dim():
        return x.repeat_interleave(2, -1)[..., ::2]
    if kind == 2 and x.numel():
        return (
            x.flatten()[:1].expand(x.numel()).view(x.shape)
            if x.numel() < 2
            else (x.narrow(0, 0, 1).expand_as(x))
        )
    return x.transpose(0, -1) if x.dim() else x


def _values(rng: Random, x: Tensor) -> Tensor:
    x = x.clone()
    if not x.numel() or x.is_meta or x.is_complex() or x.dtype == torch.bool:
        return x
    if x.is_floating_point():
        value: float = rng.choice((math.nan, math.inf, -math.inf, 1e38, -1e30, 1e-40, -1.0, 300.0))
        value = float(torch.tensor(value).to(x.dtype))  # too large for half types: infinite
    else:
        bounds = torch.iinfo(x.dtype)
        value = rng.choice((-1, -2, 1, 5, len(x) if x.dim() else 1, 10**4, bounds.min, bounds.max))
        value = min(max(value, bounds.min), bounds.max)
    if rng.random() < 0.3:
        return torch.full_like(x, value)
    x = x.contiguous()
    x.view(-1)[rng.randrange(x.numel())] = value
    return x


def _device(rng: Random, x: Tensor) -> Tensor:
    return x.to("meta")


def _layout(rng: Random, x: Tensor) -> Tensor:
    if x.is_meta or not x.dim() or rng.random() > 0.3:
        return x
    return x.to_sparse()


def _inference(rng: Random, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return x.clone()


def _gradient(rng: Random, x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_() if x.is_floating_point() else x


_CHANGES = (
    _dtype, _dtype, _rank, _rank, _size, _size, _strides, _values, _values, _values, _device,
    _layout, _inference, _gradient, _gradient,
)  # fmt: skip


def changed_argument(rng: Random, value: Any) -> Any:
    """Another value of an argument's kind."""
    if isinstance(value, Tensor):
        return changed_tensor(rng, value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice(NUMBERS)
    if isinstance(value, float):
        return rng.choice((math.nan, math.inf, -1.0, 0.0, 2.0, 1e300))
    if isinstance(value, str):
        return rng.choice(WORDS)
    if isinstance(value, list):
        return _changed_list(rng, value)
    return value


def _changed_list(rng: Random, values: list[Any]) -> list[Any]:
    values = list(values)
    kind = rng.randrange(4)
    if kind == 0 and values:
        values.pop(rng.randrange(len(values)))
    elif kind == 1 and values:
        values.append(rng.choice(values))
    elif values:
        place = rng.randrange(len(values))
        values[place] = changed_argument(rng, values[place])
    return values


def changed_arguments(rng: Random, arguments: dict[str, Any]) -> dict[str, Any]:
    """Up to three arguments are changed; sometimes two of them are one tensor."""
    arguments = dict(arguments)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        if arguments:
            name = rng.choice(list(arguments))
            arguments[name] = changed_argument(rng, arguments[name])
    tensors = [name for name, value in arguments.items() if isinstance(value, Tensor)]
    if len(tensors) > 1 and rng.random() < 0.05:
        arguments[rng.choice(tensors)] = arguments[rng.choice(tensors)]
    return arguments


def changed_bytes(rng: Random, data: bytes) -> bytes:
    """Bytes that are flipped, cut out, put in, overwritten or cut short."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        if not out:
            break
        place, kind = rng.randrange(len(out)), rng.randrange(6)
        if rng.random() < 0.5:  # headers matter most
            place = min(place, rng.randrange(min(len(out), 64)))
        if kind == 0:
            out[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[place] = rng.choice((0, 255, 127, 128, rng.randrange(256)))
        elif kind == 2:
            del out[place : place + rng.randint(1, 16)]
        elif kind == 3:
            out[place:place] = rng.randbytes(rng.randint(1, 16))
        elif kind == 4:
            out[place : place + 4] = rng.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"))
        elif rng.random() < 0.3:
            del out[place:]
    return bytes(out)


def changed_tree(rng: Random, value: Any) -> Any:
    """A copy of nested dicts and lists in which entries are missing, renamed, moved or junk."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 2, 4))):
        nodes = [node for node in _nodes(value) if node]
        if not nodes:
            return rng.choice(JUNK)
        node = rng.choice(nodes)
        key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        kind = rng.randrange(6)
        if kind == 0:
            node.pop(key)
        elif kind == 1:
            other = rng.choice(nodes)
            some = rng.choice(list(other) if isinstance(other, dict) else range(len(other)))
            node[key] = copy.deepcopy(other[some])
        elif kind == 2 and isinstance(node, dict):
            node[str(key) + rng.choice("s_ ")] = node.pop(key)
        elif kind == 3 and isinstance(node, list):
            node.append(copy.deepcopy(node[key]))
        elif kind == 4 and isinstance(node[key], Tensor):
            node[key] = changed_tensor(rng, node[key]).detach()
        elif kind == 4 and isinstance(node[key], int | float | str):
            node[key] = rng.choice((str(node[key]), [node[key]], -1, 10**12, 0.5))
        else:
            node[key] = copy.deepcopy(rng.choice(JUNK))
    return value


def _nodes(value: Any) -> list[Any]:
    """All dicts and lists within a value, itself included."""
    if not isinstance(value, dict | list):
        return []
    children = value.values() if isinstance(value, dict) else value
    return [value] + [node for child in children for node in _nodes(child)]
