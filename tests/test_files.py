from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from sparse_dset.engine.checkpoint import load_checkpoint, save_checkpoint
from sparse_dset.engine.loggers import append_row
from sparse_dset.files import append_line, atomic_write, remove_stale_temporaries, write_text

WRITER = """
import sys, time
from sparse_dset.files import atomic_write
with atomic_write(sys.argv[1]) as file:
    file.write(b"half of a file")
    file.flush()
    print("writing", flush=True)
    time.sleep(60)
"""


@contextmanager
def writing(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that is in the middle of writing a file."""
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file of this process may grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def save_large(path: Path) -> None:
    save_checkpoint(path, model_state={"a": torch.zeros(300_000)}, config={})


def write_large(path: Path) -> None:
    write_text(path, "x" * 1_000_000)


def write_in_parts(path: Path) -> None:
    with atomic_write(path) as file:
        for _ in range(1000):
            file.write(b"x" * 1000)


@pytest.mark.parametrize("write", [save_large, write_large, write_in_parts])
@pytest.mark.parametrize("former", [True, False])
def test_a_file_that_does_not_fit_is_named_and_the_former_one_is_whole(
    tmp_path: Path, write: Callable[[Path], None], former: bool
) -> None:
    path = tmp_path / "last.pt"
    if former:
        save_checkpoint(path, model_state={}, config={}, step=1)
    with file_size_limit(100_000), pytest.raises(OSError, match="could not be written") as error:
        write(path)
    text = str(error.value)
    assert str(path) in text
    assert "ulimit -f" in text
    assert ("the former last.pt is whole" in text) == former
    assert [item.name for item in tmp_path.iterdir()] == ["last.pt"] * former
    assert not former or load_checkpoint(path)["step"] == 1


def test_a_full_disk_is_told_in_a_sentence_and_the_rows_before_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"results\.jsonl could not be written: the disk is full"):
        append_row(path, {"a": 1})


def test_a_row_that_does_not_fit_is_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    append_row(path, {"step": 1})
    with file_size_limit(1000), pytest.raises(OSError, match="the lines before are whole"):
        append_row(path, {"text": "x" * 5000})
    append_row(path, {"step": 2})
    assert [json.loads(line) for line in path.open()] == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda folder: (folder / "a").write_text(""), "folder is a file"),
        (lambda folder: (folder / "a" / "b.txt").mkdir(parents=True), "a folder of that name"),
        (
            lambda folder: (folder / "a").symlink_to(folder / "nowhere" / "x"),
            "a/b.txt could not",
        ),
    ],
)
def test_a_place_that_cannot_be_written_is_told(
    tmp_path: Path, make: Callable[[Path], object], reason: str
) -> None:
    make(tmp_path)
    with pytest.raises(OSError, match=reason) as error:
        write_text(tmp_path / "a" / "b.txt", "text")
    assert str(tmp_path / "a" / "b.txt") in str(error.value)


def test_a_folder_that_vanishes_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(OSError, match="its folder has vanished"), atomic_write(folder / "x"):
        shutil.rmtree(folder)


def test_an_error_of_the_caller_stays_what_it_is(tmp_path: Path) -> None:
    write_text(tmp_path / "x", "former")
    with pytest.raises(KeyError), atomic_write(tmp_path / "x"):
        raise KeyError
    with pytest.raises(FileNotFoundError, match="other"), atomic_write(tmp_path / "x"):
        (tmp_path / "other").read_text()
    assert (tmp_path / "x").read_text() == "former"
    assert [item.name for item in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("name", ["last.pt", "table.md", "a b [ü].json"])
def test_the_next_write_removes_what_a_killed_one_has_left(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_text(path, "former")
    with writing(path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert path.read_text() == "former"
    assert len(list(tmp_path.iterdir())) == 2
    write_text(path, "new")
    assert path.read_text() == "new"
    assert [item.name for item in tmp_path.iterdir()] == [name]


def test_the_temporary_file_of_a_process_that_lives_stays(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    with writing(path):
        before = sorted(tmp_path.iterdir())
        remove_stale_temporaries(tmp_path)
        assert sorted(tmp_path.iterdir()) == before
        write_text(path, "new")
        assert path.read_text() == "new"
        assert sorted(tmp_path.iterdir()) == [*before, path]


def test_only_own_temporary_files_are_removed(tmp_path: Path) -> None:
    foreign = [".x.tmp", "last.pt.1.tmp", ".last.pt.1.tmp.old", ".last.pt.abc.tmp", "notes.tmp"]
    for name in (*foreign, ".last.pt.1.tmp", ".best.pt.22.tmp"):
        (tmp_path / name).touch()
    write_text(tmp_path / "last.pt", "x")
    names = {item.name for item in tmp_path.iterdir()}
    assert names == {*foreign, "last.pt", ".best.pt.22.tmp"}
    remove_stale_temporaries(tmp_path)
    assert {item.name for item in tmp_path.iterdir()} == {*foreign, "last.pt"}


def test_lines_of_several_processes_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    children = []
    for number in range(4):
        child = os.fork()
        if child == 0:
            for _ in range(50):
                append_line(path, str(number) * 20_000)
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    lines = path.read_text().splitlines()
    assert len(lines) == 200
    assert all(line == line[0] * 20_000 for line in lines)


def test_a_line_that_was_cut_short_is_closed_first(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"b')
    append_line(path, "{}")
    assert path.read_text() == '{"a": 1}\n{"b\n{}\n'
    append_line(tmp_path / "deep" / "new.jsonl", "{}")
    assert (tmp_path / "deep" / "new.jsonl").read_text() == "{}\n"
