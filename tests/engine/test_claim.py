from __future__ import annotations

import json
import multiprocessing
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch.distributed as dist

from sparse_dset.engine.claim import CLAIM, check_unclaimed, claimed
from tests.processes import in_two_processes

HOLDER = """
import multiprocessing, sys, time
from sparse_dset.engine.claim import claimed
with claimed(sys.argv[1]):
    if sys.argv[2:] == ["worker"]:
        multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,)).start()
    print("claimed", flush=True)
    time.sleep(60)
"""


@contextmanager
def claimed_elsewhere(folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that has claimed a folder; with "worker" it has forked one of its own."""
    command = [sys.executable, "-c", HOLDER, str(folder), *options]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "claimed\n"
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("name", ["run", "a b [x]", "Läufe/ü"])
def test_the_second_run_is_refused_with_the_name_of_the_first(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    with claimed_elsewhere(folder) as first:
        before = sorted(folder.iterdir())
        with pytest.raises(FileExistsError, match="a run that still goes on") as error:
            claimed(folder).__enter__()
        with pytest.raises(ValueError, match=f"process {first.pid} on {platform.node()}"):
            check_unclaimed(folder)
        for part in (str(folder), f"process {first.pid} ", platform.node(), "-c"):
            assert part in str(error.value)
        assert sorted(folder.iterdir()) == before
        assert json.loads((folder / CLAIM).read_text())["pid"] == first.pid


def test_a_folder_is_given_back(tmp_path: Path) -> None:
    for _ in range(2):
        with claimed(tmp_path):
            assert json.loads((tmp_path / CLAIM).read_text())["pid"] == os.getpid()
        assert not list(tmp_path.iterdir())
    with pytest.raises(KeyError), claimed(tmp_path):
        raise KeyError
    check_unclaimed(tmp_path)
    check_unclaimed(tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [(), ("worker",)])
def test_what_a_killed_run_has_left_is_taken_over(
    tmp_path: Path, options: tuple[str, ...], capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "last.pt").touch()
    (tmp_path / ".last.pt.12345.tmp").touch()
    with claimed_elsewhere(tmp_path, *options) as first:
        first.send_signal(signal.SIGKILL)
        first.wait()  # its worker lives on for a while
        assert (tmp_path / CLAIM).exists()
        check_unclaimed(tmp_path)
        with claimed(tmp_path):
            assert {item.name for item in tmp_path.iterdir()} == {"last.pt", CLAIM}
    assert f"its run was killed, process {first.pid}" in capsys.readouterr().out
    assert [item.name for item in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"pid": 1}'])
def test_a_claim_that_was_cut_short_is_taken_over(tmp_path: Path, content: str) -> None:
    (tmp_path / CLAIM).write_text(content)
    with claimed(tmp_path):
        assert json.loads((tmp_path / CLAIM).read_text())["pid"] == os.getpid()


def test_of_many_that_start_together_one_goes_on(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start, done, results = context.Event(), context.Event(), context.Queue()

    def run() -> None:
        start.wait()
        try:
            with claimed(tmp_path):
                results.put("claimed")
                done.wait(30)
        except FileExistsError:
            results.put("refused")

    processes = [context.Process(target=run) for _ in range(6)]
    for process in processes:
        process.start()
    start.set()
    outcomes = sorted(results.get(timeout=30) for _ in processes)
    done.set()
    for process in processes:
        process.join()
    assert outcomes == ["claimed", *["refused"] * 5]
    assert not list(tmp_path.iterdir())


def test_one_claim_serves_all_processes_of_a_training(tmp_path: Path) -> None:
    def work(rank: int) -> int:
        with claimed(tmp_path / "run"):
            holder = json.loads((tmp_path / "run" / CLAIM).read_text())["pid"]
            dist.barrier()
            return int(holder == os.getpid())

    assert sum(in_two_processes(work, tmp_path)) == 1
    assert not list((tmp_path / "run").iterdir())


def test_all_processes_of_a_training_are_refused(tmp_path: Path) -> None:
    def work(rank: int) -> str:
        try:
            with claimed(tmp_path / "run"):
                return ""
        except FileExistsError as error:
            return str(error)

    with claimed_elsewhere(tmp_path / "run") as first:
        texts = in_two_processes(work, tmp_path)
    assert texts[0] == texts[1]
    assert f"process {first.pid} " in texts[0]


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="what should be its folder is a file"):
        claimed(tmp_path / "file" / "run").__enter__()
