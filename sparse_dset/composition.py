"""What is wrong with a composed configuration, or with the overrides that it was composed of."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError

from sparse_dset.overrides import as_text


def check_flags(cfg: DictConfig, usual: DictConfig, given: Sequence[Override]) -> None:
    """Refuses words for settings that are on or off: "no" and "off" would count as on.

    Args:
        cfg: what was composed.
        usual: the same without the values that were given.
        given: the overrides.

    Raises:
        ValueError: a setting that is true or false by default is a word.
    """
    for key in (override.key_or_group for override in given):
        value, default = (
            OmegaConf.select(node, key, throw_on_resolution_failure=False) for node in (cfg, usual)
        )
        if isinstance(value, str) and isinstance(default, bool):
            raise ValueError(f"{key} must be true or false, got {value!r}")


def check_complete(cfg: DictConfig, usual: DictConfig) -> None:
    """Names the first value that is still to be given.

    A value of which others are made is needed as long as one of them is made of it.

    Raises:
        ValueError: there is one.
    """
    now, before = (
        dict(leaves(OmegaConf.to_container(node, resolve=False))) for node in (cfg, usual)
    )
    for key in (key for key, value in now.items() if value == "???"):
        serves, served = (
            any(f"${{{key}}}" in str(value) for value in node.values()) for node in (now, before)
        )
        if serves or not served:
            raise ValueError(f"{key} must be given: {key}=...")


def leaves(node: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Gives the dotted name and the value of whatever is no dict in nested dicts."""
    if not isinstance(node, dict):
        yield prefix.removesuffix("."), node
        return
    for key, value in node.items():
        yield from leaves(value, f"{prefix}{key}.")


def explain(
    error: Exception,
    usual: DictConfig,
    arguments: Sequence[str],
    given: Sequence[Override],
    options: Mapping[str, Sequence[str]],
) -> str:
    """Says which argument was refused, and which known key, option or spelling is nearest to it.

    Args:
        error: hydra's or OmegaConf's.
        usual: the configuration without the values that were given.
        arguments, given: the overrides, as texts and as hydra reads them.
        options: of each group.
    """
    for argument, override in zip(arguments, given, strict=True):
        unknown = explain_unknown(argument, override.key_or_group, usual, options)
        if unknown is not None:
            return f"{unknown}\n{error}"
        group, choice = override.key_or_group, override._value
        if isinstance(choice, str) and choice not in options.get(group, [choice]):
            close = difflib.get_close_matches(choice, options[group], n=1, cutoff=0.4)
            hint = f"; did you mean {group}={close[0]}?" if close else ""
            return f"{argument}: there is no such file in conf/{group}{hint}\n{error}"
    if isinstance(error, InterpolationKeyError):
        for argument in arguments:
            if argument.partition("=")[0].lstrip("+") == error.full_key:
                return (
                    f"{argument}: {error}\nText that holds ${{...}} is written {as_text(argument)}"
                )
    return str(error)


def explain_unknown(
    argument: str, key: str, usual: DictConfig, options: Mapping[str, Sequence[str]]
) -> str | None:
    """Says which known key is nearest to the key of an argument; None where that is known."""
    content = OmegaConf.to_container(usual, resolve=False)
    known = _known_keys(content)
    if key in known or key.split("/")[0] in (*options, "hydra") or key.startswith("hydra."):
        return None
    close = _nearest(key, [*known, *options], content)
    hint = f"; did you mean {close!r}?" if close else ""
    return f"{argument}: {key!r} is not known here{hint}"


def _nearest(key: str, known: Sequence[str], content: object) -> str | None:
    """Finds the known key that is most like one, which may lack its groups."""
    values: dict[str, object] = dict(leaves(content))
    start = key
    while start := start.rpartition(".")[0]:  # model.pruner.halo, where model.pruner is ${pruner}
        reference = re.fullmatch(r"\$\{([\w.]+)\}", str(values.get(start)))
        if reference is not None:
            return reference[1] + key.removeprefix(start)
    last_parts = {name.rpartition(".")[2]: name for name in reversed(known)}
    whole = difflib.get_close_matches(key, known, n=1)
    last = difflib.get_close_matches(key, last_parts, n=1, cutoff=0.5)
    return next(iter([*whole, *(last_parts[part] for part in last)]), None)


def _known_keys(node: object, prefix: str = "") -> list[str]:
    """Lists the dotted names of all keys of nested dicts."""
    if not isinstance(node, dict):
        return []
    own = [f"{prefix}{key}" for key in node]
    return own + [name for k, v in node.items() for name in _known_keys(v, f"{prefix}{k}.")]
