from __future__ import annotations

import re

import pytest

from sparse_dset.data.locate import locate_pictures


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "photos"
    (folder / "Sub").mkdir(parents=True)
    for name in (
        "a.png",
        "Straße.png",
        "Sub/b.png",
        "back\\slash.png",
        "${x}%s{y}.png",
        "e\u0301.png",
    ):
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a.png", "a.png"),
        ("./a.png", "a.png"),
        (".\\Sub\\b.png", "Sub/b.png"),
        ("Sub\\b.png", "Sub/b.png"),
        ("Sub/../a.png", "Sub/../a.png"),
        ("back\\slash.png", "back\\slash.png"),
        ("${x}%s{y}.png", "${x}%s{y}.png"),
        ("../photos/a.png", "../photos/a.png"),
    ],
)
def test_names_are_paths_as_they_are_written(root, name, found):
    paths, missing = locate_pictures(root, {7: name})
    assert (paths, missing) == ({7: root / found}, {})


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("none.png", "file_name starts from root="),
        ("A.PNG", "a.png is: the names differ in upper and lower case"),
        ("sub/B.png", "Sub/b.png is: the names differ"),
        ("\u00e9.png", "or Unicode form"),
        ("C:\\data\\a.png", "another machine.*'a.png' is in .*photos itself"),
        ("/home/someone/a.png", "another machine.*'a.png' is in .*photos itself"),
        ("\\\\server\\share\\none.png", "another machine, not one from root="),
        ("train\\a.png", "'a.png' is in .*photos itself: leave the folder out"),
        ("photos/Sub/b.png", "it is: set root to that folder"),
        ("x" * 5000, "is not there"),
        ("a\0.png", "is not there"),
    ],
)
def test_what_is_not_there_is_told_with_the_mend(root, name, hint):
    _, missing = locate_pictures(root, {7: name})
    assert list(missing) == [7]
    assert re.search(hint, missing[7])


def test_a_folder_that_is_not_there_is_told(tmp_path):
    _, missing = locate_pictures(tmp_path / "none", {1: "a.png", 2: "b.png"})
    assert "there is no folder" in missing[1]
    assert len(missing) == 2
