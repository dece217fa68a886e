"""Paths as people write them."""

from __future__ import annotations

import os
from pathlib import Path


def expand_home(path: str | Path) -> str:
    """Returns a path with a leading ``~`` or ``~user`` replaced by the home folder.

    Args:
        path: as it was written; only its beginning is looked at.

    Raises:
        ValueError: it begins with ``~`` and a name, and there is neither a user nor a file of that
            name.
    """
    text = str(path)
    if not text.startswith("~"):
        return text
    expanded = os.path.expanduser(text)
    if not expanded.startswith("~"):
        return expanded
    if os.path.lexists(text):
        return os.path.abspath(text)
    user = text[1:].split("/")[0]
    raise ValueError(
        f"{text} begins with ~, the home folder, but no user is called {user!r}; write ./{text} "
        "for a name that begins with ~"
    )


def check_output_dir(key: str, folder: str | Path) -> None:
    """Checks, before anything is computed, that a folder is there to be written or can be made.

    Args:
        key: of the setting, for messages.
        folder: its value.

    Raises:
        ValueError: the path or a part of it is a file, or nothing may be written there.
    """
    path = Path(expand_home(folder))
    there = next(part for part in (path, *path.absolute().parents) if os.path.lexists(part))
    if not there.is_dir():
        raise ValueError(f"{key}={folder} cannot be made: {there} is no folder; choose another")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(
            f"{key}={folder} cannot be written: nothing may be written in {there}; choose another"
        )
