"""Takes a state directory: locks it, reads it, and repairs the damage of a crash."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import shutil
import socket
import stat
import sys
from pathlib import Path

from attrs import frozen

from ..errors import StartError
from . import acknowledged, files
from .journal import Journal
from .lines import Unreadable
from .reading import Damaged, Loaded, load

logger = logging.getLogger("router.store")

PROGRAM = "sglang-d-router"
_OTHERS = stat.S_IWGRP | stat.S_IWOTH
ASIDE = "before-fresh"  # `--fresh` moves old files there


class StateRefused(StartError):
    """The state directory cannot be used. Exit status 2."""

    status = 2


@frozen
class Taken:
    """A state directory that this process has taken, and its content."""

    folder: Path
    lock: files.Lock
    loaded: Loaded
    journal: Journal
    # Seconds since the previous router's last sign of life; None if there was none.
    absence: float | None


def default_folder(port: int) -> Path:
    """The state directory of a router on this port of this host. Raises RuntimeError if the user
    has no home."""
    home = os.environ.get("XDG_STATE_HOME", "")
    base = Path(home) if os.path.isabs(home) else Path.home() / ".local" / "state"
    host = re.sub(r"[^A-Za-z0-9._-]", "_", socket.gethostname()) or "localhost"
    return base / PROGRAM / f"{host}-{port}"


def take(folder: Path, *, fresh: bool = False) -> Taken:
    """Take a state directory, creating it if necessary. `fresh` sets aside its content.

    Raises StateRefused if another router has it, if others may write to it, or if it cannot be
    read; OSError if it cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    _make(folder)
    absence = files.age(folder / files.LOCK)
    lock = lock_of(folder)
    try:
        if fresh:
            _set_aside(folder)
        loaded = _load(folder)
        _mend(folder, loaded)
        seq, after = loaded.seq or 0, loaded.after or ""
        journal = Journal.create(folder, loaded.last + 1, seq, after)
        return Taken(folder, lock, loaded, journal, absence)
    except BaseException:
        lock.release()
        raise


def lock_of(folder: Path) -> files.Lock:
    """Lock a state directory. Raises StateRefused if another router has it, or if others may write
    there; OSError."""
    _only_ours(folder)
    try:
        lock = files.Lock.take(folder)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise StateRefused(
                f"{folder / files.LOCK} is a symbolic link, but the router makes a regular file;"
                " remove the link"
            ) from error
        raise
    if lock is None:
        holder = files.holder(folder) or "unknown"
        raise StateRefused(
            f"Another router (process {holder}) uses the state directory {folder}; "
            "stop that router, or set another --state-dir"
        )
    return lock


def _make(folder: Path) -> None:
    """Make a directory and its missing parents, for this user alone."""
    for path in (*reversed(folder.parents), folder):
        if not path.is_dir():
            path.mkdir(mode=0o700, exist_ok=True)


def _only_ours(folder: Path) -> None:
    """Raise StateRefused if others may write to the directory: they could replace any file."""
    if sys.platform == "win32":
        return
    there = folder.stat()
    if there.st_uid not in (os.geteuid(), 0):
        raise StateRefused(
            f"The state directory {folder} belongs to another user (uid {there.st_uid}); set "
            "--state-dir to a directory of your own"
        )
    if there.st_mode & _OTHERS:
        raise StateRefused(
            f"Other users can write to the state directory {folder} "
            f"(mode {there.st_mode & 0o777:o}); run 'chmod go-w {folder}', or name a new directory "
            "within it, which the router makes private"
        )


def _load(folder: Path) -> Loaded:
    try:
        return load(folder)
    except Unreadable as error:
        raise StateRefused(
            f"This version cannot use the state in {folder}: {error}; start the version that wrote "
            "the state, or start without the state by --fresh"
        ) from error
    except Damaged as error:
        raise StateRefused(
            f"The state in {folder} is damaged: {error}; 'state check {folder}' shows details, "
            f"'state repair {folder}' keeps all readable rows, and --fresh starts without the state"
        ) from error


def _mend(folder: Path, loaded: Loaded) -> None:
    for path, why in loaded.corrupt:
        logger.error(
            "snapshot %s cannot be read and was renamed to %s.corrupt: %s; "
            "nothing is lost, because the previous snapshot and the journals since are complete",
            *(path, path.name, why),
        )
        files.replace(path, path.with_name(path.name + ".corrupt"))
    torn = loaded.torn
    if torn is not None:
        logger.warning(
            "journal %s ends with a write that the previous router did not finish: cut %d bytes "
            "that were never acknowledged",
            *(torn.path, torn.size),
        )
        with torn.path.open("r+b") as file:
            files.truncate(file.fileno(), torn.good)
            files.sync(file.fileno())
    elif loaded.last:
        # A killed router may have left bytes written but not synced; we read them, so they count.
        with files.journal(folder, loaded.last).open("r+b") as file:
            files.sync(file.fileno())
    for path in folder.glob("*.tmp"):
        files.unlink(path)
    files.sync_folder(folder)


def _set_aside(folder: Path) -> None:
    aside = folder / ASIDE
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(aside)
    aside.mkdir(mode=0o700)
    # The note first: it refers to journals that are about to be moved.
    for path in [folder / acknowledged.NAME, *folder.glob("*.jsonl")]:
        with contextlib.suppress(FileNotFoundError):
            os.replace(path, aside / path.name)
    files.sync_folder(folder)
