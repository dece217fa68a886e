"""Files that are written whole or not at all, and locks that end with their process."""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "it is larger than the system allows a file to be (see ulimit -f)",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission is denied",
    errno.EPERM: "permission is denied",
    errno.ENOENT: "its folder has vanished",
    errno.ENOTDIR: "what should be its folder is a file",
    errno.EEXIST: "what should be its folder is a file",
    errno.EISDIR: "there is a folder of that name",
    errno.EIO: "the disk reports an error",
}

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

_TEMPORARY = re.compile(r"\.(?P<name>.+)\.\d+\.tmp")


@contextmanager
def atomic_write(path: str | Path) -> Iterator[IO[bytes]]:
    """Opens a file whose content takes the place of ``path`` when the block ends without an error.

    The content is written beside its final place, flushed to the disk and then renamed: ``path``
    holds either what it held before or the whole new content, never a part. The temporary file is
    locked while it is written; one that a killed process has left has no lock, and the next write
    of the same file removes it.

    Args:
        path: the file to write; its folder is made when it is absent.

    Raises:
        OSError: it could not be written, e.g. because the disk is full; the message names the file
            and says what is still there. The error's number and class are the system's.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _errors_name(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_stale_temporaries(path.parent, path.name)
        file = _RecordingFile(_open_locked(temporary))
    try:
        try:
            yield cast(IO[bytes], file)
        except Exception as error:
            if file.error is None:
                raise
            raise write_error(file.error, path) from error
        with _errors_name(path):
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        with suppress(OSError):  # renamed already, or in a folder that has vanished
            temporary.unlink()
        with suppress(OSError):  # what is still to be flushed finds the same full disk
            file.close()


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file in UTF-8; see `atomic_write`."""
    with atomic_write(path) as file:
        file.write(text.encode())


def append_line(path: str | Path, line: str) -> None:
    """Appends a line and flushes it to the disk.

    Processes that append to one file wait for each other, so their lines do not mix. A last line
    that a crash cut short is closed first; a line that does not fit on the disk is taken back.

    Args:
        path: the file; its folder is made when it is absent.
        line: without a line break.

    Raises:
        OSError: it could not be written, see `atomic_write`.
    """
    path = Path(path)
    with _errors_name(path, "the lines before are whole"):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            _wait_for_lock(descriptor)
            size = os.fstat(descriptor).st_size
            cut_short = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            content = f"\n{line}\n" if cut_short else f"{line}\n"
            try:
                _write_all(descriptor, content.encode())
                os.fsync(descriptor)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)


def _wait_for_lock(descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if not knows_no_locks(error):
            raise


def _write_all(descriptor: int, content: bytes) -> None:
    """Writes on where a nearly full disk took only the beginning, until it says why."""
    while content:
        content = content[os.write(descriptor, content) :]


def write_error(error: OSError, path: Path, kept: str | None = None) -> OSError:
    """Returns an error of the same number that says which file could not be written, and why.

    Args:
        error: the system's.
        path: the file.
        kept: what is still there; None: what `atomic_write` leaves.
    """
    number = error.errno or errno.EIO
    reason = _REASONS.get(number, os.strerror(number))
    if kept is None:
        there = path.is_file()
        kept = f"the former {path.name} is whole" if there else "no part of it is left"
    return OSError(number, f"{path} could not be written: {reason}; {kept}")


@contextmanager
def _errors_name(path: Path, kept: str | None = None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise write_error(error, path, kept) from error


def remove_stale_temporaries(folder: Path, name: str | None = None) -> None:
    """Removes the temporary files of `atomic_write` whose process has ended.

    Args:
        folder: where.
        name: of the file that they were to become; None: of any.
    """
    for path in folder.glob(".*.tmp"):
        match = _TEMPORARY.fullmatch(path.name)
        if match is None or (name is not None and match["name"] != name):
            continue
        with suppress(OSError):  # locked by a process that lives, or gone, or not ours to remove
            descriptor = lock_file(path, create=False)
            try:
                path.unlink()
            finally:
                os.close(descriptor)


def lock_file(path: Path, *, create: bool = True, wait: bool = False) -> int:
    """Opens a file and locks it.

    The lock lasts until the last copy of the descriptor is closed, however the process ends. A
    process that is forked has a copy.

    Args:
        path: the file.
        create: make it when it is absent.
        wait: until no other process has locked it.

    Returns:
        A descriptor.

    Raises:
        BlockingIOError: another process has locked it, and ``wait`` is not set.
        OSError: it cannot be opened, or the file system knows no locks (see `knows_no_locks`).
    """
    flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0)
    while True:
        descriptor = os.open(path, flags, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BaseException:
            os.close(descriptor)
            raise
        # Whoever had locked it may have removed it in between: then it is no longer this file.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)


def knows_no_locks(error: OSError) -> bool:
    """Whether an error of `lock_file` says that the file system has no locks."""
    return error.errno in _NO_LOCKS


def _open_locked(path: Path) -> IO[bytes]:
    try:
        descriptor = lock_file(path, wait=True)
    except OSError as error:
        if not knows_no_locks(error):
            raise
        return path.open("wb")
    os.ftruncate(descriptor, 0)
    return os.fdopen(descriptor, "wb")


class _RecordingFile:
    """A file that remembers why a write failed: some writers raise an error of their own."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        try:
            self._file.flush()
        except OSError as error:
            self.error = error
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
