from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sparse_dset.engine.prediction_files import PredictionFolder, find_pictures


def _pictures(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return folder


def _names(folder: Path, **options: Any) -> list[str]:
    return [p.relative_to(folder).as_posix() for p in find_pictures(folder, **options).pictures]


def test_pictures_are_found_by_their_endings(tmp_path: Path) -> None:
    _pictures(tmp_path, "b.JPG", "a.png", "a.jpg", "umläut (1).webp", "notes.txt", ".a.png", "x")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert _names(tmp_path) == ["a.jpg", "a.png", "b.JPG", "umläut (1).webp"]
    folders, others = find_pictures(tmp_path).left_out
    assert folders.startswith("sub-folders: folder.png (recursive=true")
    assert others == "files of other kinds: 1 .png, 1 .txt, 1 hidden, 1 no ending"


def test_sub_folders_are_searched_where_that_is_asked_for(tmp_path: Path) -> None:
    _pictures(tmp_path, "a.png", "sub/a.png", "sub/deep/b.png", ".git/c.png", "out/a.png.jpg")
    assert _names(tmp_path) == ["a.png"]
    (folders,) = find_pictures(tmp_path).left_out
    assert folders.startswith("sub-folders: .git, out, sub (recursive=true")
    found = _names(tmp_path, recursive=True, output=tmp_path / "out")
    assert sorted(found) == ["a.png", "sub/a.png", "sub/deep/b.png"]


def test_a_source_without_pictures_says_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: there is no such file or folder"):
        find_pictures(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no pictures \(.bmp.*\) at .*$"):
        find_pictures(tmp_path)
    _pictures(tmp_path, "sub/a.png", "a.gif")
    with pytest.raises(FileNotFoundError, match=r"sub-folders: sub \(rec.*; files .*: 1 \.gif"):
        find_pictures(tmp_path)


def test_a_single_file_is_taken_whatever_its_ending(tmp_path: Path) -> None:
    _pictures(tmp_path, ".hidden", "a.png")
    assert find_pictures(tmp_path / ".hidden").pictures == (tmp_path / ".hidden",)


def _run(output: Path, source: Path, mark: int, **options: Any) -> list[dict[str, Any]]:
    """Predicts: each drawing has a width that tells of which run it is."""
    found = find_pictures(source, output=output, **options)
    folder = PredictionFolder(output, found)
    for path in found.pictures:
        folder.write(path, Image.new("RGB", (mark, 1)), {"mark": mark})
    rows = [json.loads(line) for line in (output / "detections.jsonl").open()]
    for row in rows:  # every row has its own drawing, of the same run
        assert Image.open(output / row["drawn"]).size == (row["mark"], 1)
    assert len({row["drawn"] for row in rows}) == len(rows)
    drawings = [p for p in output.rglob("*") if p.suffix == ".jpg"]
    assert len(drawings) == len(rows)
    return rows


def test_a_second_run_replaces_its_own_results(tmp_path: Path) -> None:
    source = _pictures(tmp_path / "in", "a.png", "a.jpg", "b.png")
    _run(tmp_path / "out", source, 1)
    rows = _run(tmp_path / "out", source / "a.png", 2)
    assert [(Path(row["file"]).name, row["mark"]) for row in rows] == [
        ("a.jpg", 1),
        ("b.png", 1),
        ("a.png", 2),
    ]
    assert {row["mark"] for row in _run(tmp_path / "out", source, 3)} == {3}
    assert sorted(os.listdir(tmp_path / "out")) == [
        *("a.jpg.jpg", "a.png.jpg", "b.png.jpg", "detections.jsonl")
    ]


def test_the_same_name_in_other_folders_overwrites_nothing(tmp_path: Path) -> None:
    first = _pictures(tmp_path / "x" / "in", "a.png", "sub/a.png")
    second = _pictures(tmp_path / "y" / "in", "a.png", "sub/a.png")
    _run(tmp_path / "out", first, 1, recursive=True)
    rows = _run(tmp_path / "out", second, 2, recursive=True)
    assert [row["drawn"] for row in rows] == [
        *("a.png.jpg", "sub/a.png.jpg", "a.png (2).jpg", "sub/a.png (2).jpg")
    ]
    again = _run(tmp_path / "out", second, 3, recursive=True)
    assert [row["mark"] for row in again] == [1, 1, 3, 3]
    assert [row["drawn"] for row in again] == [row["drawn"] for row in rows]


def test_rows_and_drawings_from_before_are_kept(tmp_path: Path) -> None:
    source = _pictures(tmp_path / "in", "a.png")
    output = _pictures(tmp_path / "out", "b.png.jpg")
    old = [{"file": str(source / "a.png")}, {"file": str(tmp_path / "elsewhere" / "a.png")}]
    (output / "detections.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in old))
    folder = PredictionFolder(output, find_pictures(source))
    folder.write(source / "a.png", Image.new("RGB", (1, 1)), {})
    rows = [json.loads(line) for line in (output / "detections.jsonl").open()]
    assert [row["file"] for row in rows] == [old[1]["file"], old[0]["file"]]
    assert rows[1]["drawn"] == "a.png (2).jpg"  # both of before had the same one
    assert (output / "b.png.jpg").read_bytes() == b"x"


def test_results_are_not_written_among_the_pictures(tmp_path: Path) -> None:
    source = _pictures(tmp_path / "in", "a.png", "sub/b.png")
    for output in (source, source / "sub" / "..", source / "sub"):
        found = find_pictures(source, recursive=True)
        with pytest.raises(ValueError, match="holds the pictures themselves"):
            PredictionFolder(output, found)
