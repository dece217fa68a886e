"""Finds the pictures that a data set names."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

_ABSOLUTE = re.compile(r"[A-Za-z]:[\\/]|[\\/]")
"""The start of a path from a root, a drive or a server, of any system."""


class Folders:
    """Which names are in the folders asked for; each folder is listed once."""

    def __init__(self) -> None:
        self._names: dict[Path, frozenset[str]] = {}

    def has(self, path: Path) -> bool:
        """Whether a file is there."""
        try:
            return path.name in self._listed(path.parent) or path.exists()
        except (OSError, ValueError):  # too long, or with a zero byte: no file's name
            return False

    def similar(self, root: Path, name: str) -> Path | None:
        """Finds a file whose path differs in upper and lower case or Unicode form alone."""
        path = root
        for part in PurePosixPath(name).parts:
            here = sorted(n for n in self._listed(path) if _key(n) == _key(part))
            if not here:
                return None
            path = path / (part if part in here else here[0])
        return path

    def _listed(self, folder: Path) -> frozenset[str]:
        if folder not in self._names:
            try:
                self._names[folder] = frozenset(os.listdir(folder))
            except (OSError, ValueError):
                self._names[folder] = frozenset()
        return self._names[folder]


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def locate_pictures(root: Path, names: Mapping[int, str]) -> tuple[dict[int, Path], dict[int, str]]:
    """Finds pictures by their file names, which may be written with backslashes.

    Args:
        root: the folder that the names start from.
        names: the file name of each image id; a name is a path as it is written.

    Returns:
        The paths of all, and of those that are not there, why by image id.
    """
    folders = Folders()
    paths, missing = {}, {}
    for image_id, name in names.items():
        path = root / name
        if not folders.has(path) and "\\" in name:
            path = root / name.replace("\\", "/")
        paths[image_id] = path
        if not folders.has(path):
            missing[image_id] = f"{path} is not there{_hint(root, name, folders)}"
    return paths, missing


def _hint(root: Path, name: str, folders: Folders) -> str:
    if not root.is_dir():
        return f": there is no folder {root}; set root to the folder that holds the pictures"
    last = PurePosixPath(name.replace("\\", "/")).name
    direct = folders.has(root / last)
    if _ABSOLUTE.match(name):
        where = (
            f"; {last!r} is in {root} itself: leave the folder out of file_name" if direct else ""
        )
        return f": file_name is a path of another machine, not one from root={root}{where}"
    similar = folders.similar(root, name.replace("\\", "/"))
    if similar is not None:
        return f", but {similar} is: the names differ in upper and lower case or Unicode form"
    if direct:
        return f", but {last!r} is in {root} itself: leave the folder out of file_name"
    if folders.has(root.parent / name.replace("\\", "/")):
        return f", but from {root.parent} it is: set root to that folder"
    return f": file_name starts from root={root}"
