"""Overrides as people write them, brought to hydra's grammar.

In hydra's grammar brackets, braces, commas, colons, "=", "~" and most characters beyond ASCII have
a meaning of their own or none. A path or a name is text, whatever characters are in it, so here it
is quoted wherever hydra would read anything else.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Collection, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, Quote, QuotedString
from hydra.errors import HydraException

from sparse_dset.paths import expand_home

_PATHS = re.compile(
    r"(.+\.)?(annotations|output_dir|root)|checkpoint|output|resume|rows|source|weights"
    r"|hydra\.(run|sweep)\.dir"
)
"""The settings that are paths."""

_NAMES = re.compile(r"class_name|title|data\.(train|val)_split")
"""The settings that are other text."""

_LISTS = ("rows",)
"""Those that may be a list: [a,b]."""

_FLAGS = ("resume",)
"""Those that may also be true or false."""

_SWEEP = re.compile(r"(choice|shuffle|sort|tag|range|interval|glob)\(.*\)", re.DOTALL)
_QUOTED_ITEM = re.compile(r"""\s*("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')\s*(?=,|$)""", re.DOTALL)
_PLAIN_ITEM = re.compile(r"(?:\$\{[^}]*\}|\\,|[^,])*")


def is_path(key: str) -> bool:
    """Whether a setting, by its dotted name, is a path."""
    return _PATHS.fullmatch(key) is not None


def text_override(key: str, text: object) -> str:
    """Returns the override that sets a key to a text, whatever characters are in it."""
    return f"{key}={_quoted(escaped(str(text)))}"


def as_written(
    arguments: Sequence[str], *, nullable: Collection[str] = (), sweeps: bool = False
) -> list[str]:
    """Returns overrides with every path and name quoted where hydra would not take it as it is.

    A path that exists is that path. Otherwise a value in quotes is what hydra makes of it, and
    ``${...}`` is an interpolation. A leading ``~`` is the home folder, in quotes too. Where null,
    true or false are values of a setting, a file of that name is written ``./null``.

    Args:
        arguments: of a command line; what sets neither a path nor a name is left as it is.
        nullable: the settings that may be null.
        sweeps: commas separate the values of a sweep.

    Raises:
        ValueError: a path is empty, or names a user who is unknown.
    """
    return [_as_written(argument, nullable, sweeps) for argument in arguments]


def parsed(argument: str) -> Override:
    """Reads one argument as hydra does.

    Raises:
        ValueError: it is no override; the message shows how its value is quoted.
    """
    try:
        return OverridesParser.create().parse_override(argument)
    except HydraException as error:
        if "=" not in argument:
            message = f"{argument} is no setting: one is written key=value"
        else:
            message = (
                f"{argument}: the value cannot be read, because quotes, brackets, braces, commas, "
                'colons, "=" and most signs have a meaning of their own; as text it is written '
                f"{as_text(argument)}"
            )
        raise ValueError(message) from error


def as_text(argument: str) -> str:
    """Returns how one writes in a shell that an argument's value is text as it stands."""
    key, _, value = argument.partition("=")
    text = _read(value)
    text = text.text if isinstance(text, QuotedString) else value
    return shlex.quote(f"{key}={QuotedString(escaped(text), Quote.double).with_quotes()}")


def escaped(text: str) -> str:
    """Returns what a configuration must hold for a text to be read as it is."""
    return re.sub(r"(\\*)\$\{", lambda found: f"{2 * found[1]}\\${{", text)


def _as_written(argument: str, nullable: Collection[str], sweeps: bool) -> str:
    key, equals, value = argument.partition("=")
    name = key.lstrip("+")
    if not equals or not (is_path(name) or _NAMES.fullmatch(name)):
        return argument
    try:
        return f"{key}={_value(name, value, nullable, sweeps)}"
    except ValueError as error:
        raise ValueError(f"{argument}: {error}") from error


def _value(name: str, value: str, nullable: Collection[str], sweeps: bool) -> str:
    word = value.lower()
    if (word == "null" and name in nullable) or (word in ("true", "false") and name in _FLAGS):
        return value
    if is_path(name) and value == "???":  # which hydra takes for what is still to be given
        return "./???"
    if is_path(name) and os.path.lexists(os.path.expanduser(value)):
        return _quoted(escaped(expand_home(value)))
    read = _read(value)
    if isinstance(read, QuotedString):
        if not is_path(name):
            return value
        return QuotedString(expand_home(read.text), read.quote).with_quotes()
    if name in _LISTS and isinstance(read, ChoiceSweep):
        return value
    if name in _LISTS and value.startswith("[") and value.endswith("]"):
        return f"[{','.join(_value(name, item, (), False) for item in _items(value[1:-1]))}]"
    if sweeps and _SWEEP.fullmatch(value):
        return value
    if sweeps and len(items := _items(value)) > 1:
        return ",".join(_value(name, item, nullable, False) for item in items)
    return _quoted(_path(value, read) if is_path(name) else value)


def _path(value: str, read: object) -> str:
    """The path that a value means where there is no file of that very name."""
    if not value.strip():
        raise ValueError("the path is empty")
    items = _items(value)
    if len(items) > 1 and all(os.path.lexists(os.path.expanduser(item)) for item in items):
        raise ValueError(
            "there is no such path, but its parts are there: start the script with -m to run it "
            "with one after the other, or, where a list is taken, write [...]"
        )
    if isinstance(read, str) and os.path.lexists(read):
        return read  # it was written with hydra's backslashes
    return expand_home(value)


def _items(values: str) -> list[str]:
    """Splits values at the commas that stand outside of quotes and interpolations."""
    items, position = [], 0
    while position <= len(values):
        found = _QUOTED_ITEM.match(values, position) or _PLAIN_ITEM.match(values, position)
        assert found is not None  # an empty item is an item
        items.append(found[0].strip())
        position = found.end() + 1
    return items


def _quoted(text: str) -> str:
    """Quotes a text unless hydra reads it as it is; ``${...}`` in it stays an interpolation."""
    if "\\${" not in text and _read(text) == text:
        return text
    return QuotedString(text, Quote.double).with_quotes()


def _read(value: str) -> object:
    """What hydra makes of a value; None where it cannot be read."""
    try:
        return OverridesParser.create().parse_override(f"key={value}")._value
    except HydraException:
        return None
