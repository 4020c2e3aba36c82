"""The files of a state directory: their names, and durable writes.

Once a directory is taken, every change to it goes through functions of this module.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from attrs import define

from .. import wall

if sys.platform != "win32":
    import fcntl

LOCK = "lock"
# Flags for opening lasting files. O_NOFOLLOW: no link can make us write elsewhere.
OURS = os.O_RDWR | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
_NAME = re.compile(r"(journal|snapshot)-(\d+)\.jsonl\Z")
_PATIENCE, _PAUSE = 0.5, 0.02  # seconds: a reader may have the lock for a moment


def journal(folder: Path, number: int) -> Path:
    return folder / f"journal-{number}.jsonl"


def snapshot(folder: Path, number: int) -> Path:
    return folder / f"snapshot-{number}.jsonl"


def numbered(folder: Path, holds: str) -> list[int]:
    """The numbers of the existing journals or snapshots, in order."""
    found = (_NAME.match(name) for name in os.listdir(folder))
    return sorted(int(match[2]) for match in found if match and match[1] == holds)


def now() -> str:
    """The time of day, for people."""
    return datetime.fromtimestamp(wall.seconds(), UTC).isoformat(timespec="seconds")


def age(path: Path) -> float | None:
    """Seconds since a file was touched, by the wall clock, which continues across processes."""
    try:
        return max(0.0, wall.seconds() - path.stat().st_mtime)
    except OSError:
        return None


def write(fd: int, data: bytes) -> None:
    """Write all data at the file's current position. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def truncate(fd: int, size: int) -> None:
    """Cut a file off. Raises OSError."""
    os.ftruncate(fd, size)


def sync(fd: int) -> None:
    """Wait until all data written to a file is on the disk. Raises OSError."""
    if sys.platform == "linux":
        os.fdatasync(fd)
    else:
        os.fsync(fd)


def replace(path: Path, target: Path) -> None:
    """Rename a file, replacing any file of that name. Raises OSError."""
    os.replace(path, target)


def unlink(path: Path) -> None:
    """Raises OSError."""
    path.unlink()


def touch(path: Path) -> None:
    """Set a file's modification time to now. Raises OSError."""
    os.utime(path)


def sync_folder(folder: Path) -> None:
    """Make new, changed and removed names durable. Raises OSError."""
    if sys.platform == "win32":
        return  # folders cannot be opened there
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[int]:
    """Write a file under a temporary name, and rename it once it is on the disk.

    Yields the descriptor. Raises OSError; after any exception `path` is unchanged.
    """
    beside = path.with_name(path.name + ".tmp")
    fd = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o600)
    try:
        try:
            yield fd
            sync(fd)
        finally:
            os.close(fd)
        replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            unlink(beside)
        raise
    sync_folder(path.parent)


@define(eq=False)
class Lock:
    """The right to write in a state directory; ends with the process, even after a crash."""

    path: Path
    fd: int | None

    @classmethod
    def take(cls, folder: Path) -> Lock | None:
        """Take the lock; None if another process has it. Leaves the last sign of life unchanged.
        Raises OSError, with ELOOP if the lock file is a symbolic link."""
        path = folder / LOCK
        fd = os.open(path, OURS | os.O_CREAT, 0o600)
        if sys.platform != "win32":
            for _ in range(round(_PATIENCE / _PAUSE)):
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(_PAUSE)
            else:
                os.close(fd)
                return None
        touched = os.fstat(fd)
        os.ftruncate(fd, 0)
        os.write(fd, b"%d\n" % os.getpid())
        os.utime(path, ns=(touched.st_atime_ns, touched.st_mtime_ns))
        return cls(path, fd)

    def touch(self) -> None:
        """Record a sign of life of the lock's holder. Raises OSError."""
        if self.fd is not None:
            touch(self.path)

    def release(self) -> None:
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None


def holder(folder: Path) -> str | None:
    """The process that has the lock, as far as the system can tell; None if the lock is free."""
    if sys.platform == "win32":
        return None
    try:
        fd = os.open(folder / LOCK, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        return os.read(fd, 32).decode("ascii", "replace").strip() or "unknown"
    except OSError:
        return None
    finally:
        os.close(fd)
