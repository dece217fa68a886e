"""Which pictures a prediction is made of, and where what is found in each is written."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from sparse_dset.engine.loggers import append_row, read_rows
from sparse_dset.files import atomic_write, write_text

PICTURES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Source:
    """The pictures of a folder, or a single one.

    Attributes:
        root: the folder that their names count from.
        pictures: sorted.
        left_out: what was not searched or taken, a sentence each.
    """

    root: Path
    pictures: tuple[Path, ...]
    left_out: tuple[str, ...] = ()


def find_pictures(
    source: str | Path, *, recursive: bool = False, output: str | Path | None = None
) -> Source:
    """Finds the pictures of a folder, by their endings, or the one file, whatever its ending.

    Hidden files and folders, whose names start with a dot, are left out.

    Args:
        source: a picture or a folder.
        recursive: search sub-folders too.
        output: a folder that is not searched, where results are written.

    Raises:
        FileNotFoundError: nothing is there, or no picture; the message says what there is instead.
    """
    source = Path(source)
    if source.is_file():
        return Source(source.parent, (source,))
    if not source.is_dir():
        raise FileNotFoundError(f"no pictures at {source}: there is no such file or folder")
    excluded = None if output is None else Path(output).resolve()
    pictures: list[Path] = []
    folders: list[Path] = []
    others: list[Path] = []
    for folder, names, files in os.walk(source):
        here = Path(folder)
        inner = sorted(n for n in names if (here / n).resolve() != excluded)
        names[:] = [name for name in inner if recursive and not name.startswith(".")]
        folders += [here / name for name in inner if name not in names]
        for path in sorted(here / name for name in files):
            taken = path.suffix.lower() in PICTURES and not path.name.startswith(".")
            (pictures if taken and path.is_file() else others).append(path)
    left_out = _left_out(source, folders, others)
    if not pictures:
        instead = f"; not searched or taken: {'; '.join(left_out)}" if left_out else ""
        raise FileNotFoundError(f"no pictures ({', '.join(PICTURES)}) at {source}{instead}")
    return Source(source, tuple(pictures), left_out)


def _left_out(source: Path, folders: Sequence[Path], others: Sequence[Path]) -> tuple[str, ...]:
    told = []
    if folders:
        shown = ", ".join(str(folder.relative_to(source)) for folder in folders[:5])
        more = f" and {len(folders) - 5} more" if len(folders) > 5 else ""
        told.append(
            f"sub-folders: {shown}{more} (recursive=true searches those that are not hidden)"
        )
    if others:
        kinds = Counter(
            "hidden" if path.name.startswith(".") else path.suffix.lower() or "no ending"
            for path in others
        )
        shown = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        told.append(f"files of other kinds: {shown}")
    return tuple(told)


class PredictionFolder:
    """A folder of drawn pictures, with a row for each in ``detections.jsonl``.

    A picture's drawing has its name and folders under the source. A picture that the folder has
    results of already, by its place on the disk, gets new ones in their stead; one of another place
    that has the same name gets a number behind it.

    Args:
        folder: made where it is absent.
        pictures: of this run; rows of an earlier run of the same pictures are taken out.

    Raises:
        ValueError: the pictures lie in the folder itself.
    """

    def __init__(self, folder: str | Path, source: Source) -> None:
        self.folder = Path(folder)
        own = self.folder.resolve()
        if own in {path.resolve().parent for path in source.pictures}:
            raise ValueError(f"output_dir={folder} holds the pictures themselves; choose another")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._root = source.root
        self._file = self.folder / "detections.jsonl"
        rows = read_rows(self._file) if self._file.exists() else []
        now = {os.path.abspath(path) for path in source.pictures}
        kept = [row for row in rows if _place(row) not in now]
        self._taken = {_drawing(row) for row in kept}
        former = {_place(row): _drawing(row) for row in rows if _place(row) in now}
        self._former = {place: name for place, name in former.items() if name not in self._taken}
        self._taken |= set(self._former.values())
        if len(kept) < len(rows):
            write_text(self._file, "".join(json.dumps(row) + "\n" for row in kept))

    def write(self, path: Path, drawn: Image.Image, found: dict[str, Any]) -> None:
        """Writes a drawing and a row.

        Args:
            path: the picture.
            drawn: what is written as JPEG.
            found: of the row, beside the names of both files.
        """
        name = self._name(path)
        with atomic_write(self.folder / name) as file:
            drawn.save(file, format="JPEG", quality=92)
        place = os.path.abspath(path)
        append_row(self._file, {"file": str(path), "path": place, "drawn": name, **found})

    def _name(self, path: Path) -> str:
        former = self._former.pop(os.path.abspath(path), None)
        if former is not None:
            return former
        relative = path.relative_to(self._root).as_posix()
        names = [f"{relative}.jpg", *(f"{relative} ({i}).jpg" for i in range(2, 10_000))]
        name = next(n for n in names if n not in self._taken and not (self.folder / n).exists())
        self._taken.add(name)
        return name


def _place(row: dict[str, Any]) -> str:
    return row.get("path") or os.path.abspath(row["file"])


def _drawing(row: dict[str, Any]) -> str:
    return row.get("drawn") or f"{Path(row['file']).name}.jpg"
