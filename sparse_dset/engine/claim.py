"""The claim of a run on its output folder, so that two runs never write the same files."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sparse_dset.engine import distributed
from sparse_dset.engine.loggers import now
from sparse_dset.files import knows_no_locks, lock_file, remove_stale_temporaries, write_error

CLAIM = "claim.json"
"""The locked file: host, process, start and command of the run that writes the folder."""


@contextmanager
def claimed(folder: str | Path) -> Iterator[None]:
    """Keeps a folder for this run alone while the block runs.

    Of processes that train together the main one holds the claim, and each learns of a refusal. A
    claim is a lock that ends with its process, however that ends, so that the next run takes over
    what a killed one has left: the claim and the temporary files of unfinished writes.

    Scripts whose files tell of one run claim their folder (train, ablate, audit, predict). Those
    that append rows, and make tables anew from all rows, share it (benchmark, evaluate, calibrate,
    sweep, scale).

    Args:
        folder: it is made when it is absent.

    Raises:
        FileExistsError: another run that still goes on has claimed it; the message names that run.
        OSError: the folder cannot be written; the message says why.
    """
    path = Path(folder) / CLAIM
    descriptor, problem = None, None
    if distributed.is_main():
        try:
            descriptor = _claim(path)
        except OSError as error:
            problem = error
    for refusal in distributed.gather(None if problem is None else (problem.errno, str(problem))):
        if refusal is not None:
            raise problem or FileExistsError(refusal[1])
    try:
        yield
    finally:
        if descriptor is not None:
            with suppress(OSError):  # the folder has vanished
                path.unlink()
            _held.discard(descriptor)
            os.close(descriptor)


def check_unclaimed(folder: str | Path) -> None:
    """Checks, before a run writes anything, that no other one has claimed its folder.

    The claim itself comes later, see `claimed`. Processes that train together leave the check to
    the first one, since they share a claim.

    Raises:
        ValueError: another run that still goes on has claimed it.
    """
    path = Path(folder) / CLAIM
    if int(os.environ.get("RANK", "0")) != 0:
        return
    try:
        os.close(lock_file(path, create=False))
    except BlockingIOError:
        raise ValueError(_refusal(path)) from None
    except OSError:  # no claim, or no folder, or none that can be written: told when it is claimed
        return


def _claim(path: Path) -> int | None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = lock_file(path)
    except BlockingIOError:
        raise FileExistsError(_refusal(path)) from None
    except OSError as error:
        if not knows_no_locks(error):
            raise write_error(error, path) from error
        warnings.warn(
            f"{path.parent} lies on a file system without locks: nothing keeps a second run from "
            "writing there too",
            stacklevel=4,
        )
        return None
    former = _read(path)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(_own()).encode())
    except OSError as error:
        os.close(descriptor)
        raise write_error(error, path) from error
    _held.add(descriptor)
    if former:
        print(f"{path.parent} is taken over: its run was killed, {_told(former)}")
    remove_stale_temporaries(path.parent)
    return descriptor


def _own() -> dict[str, Any]:
    return {
        "host": platform.node(),
        "pid": os.getpid(),
        "started": now(),
        "command": shlex.join(sys.argv),
    }


def _refusal(path: Path) -> str:
    return (
        f"{path.parent} belongs to a run that still goes on: {_told(_read(path))}; wait for its "
        "end, or choose another output folder"
    )


def _read(path: Path) -> dict[str, Any]:
    """What a claim says; nothing where its run has just begun to write it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _told(claim: dict[str, Any]) -> str:
    if not claim:
        return "a process that has just started"
    host, pid, started, command = (
        claim.get(key, "?") for key in ("host", "pid", "started", "command")
    )
    return f"process {pid} on {host}, started {started}, {command}"


# A lock lasts until the last copy of its descriptor is closed, and a forked process has a copy:
# without this, the loader workers of a killed training would hold its claim until they notice.
_held: set[int] = set()


def _close_copies() -> None:
    for descriptor in _held:
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_copies)
