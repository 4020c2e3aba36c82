"""Taking a state directory: its lock, what is in it, and mending what a crash has left."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import shutil
import socket
from pathlib import Path

from attrs import frozen

from ..errors import StartError
from . import files
from .journal import Journal
from .lines import Unreadable
from .reading import Damaged, Loaded, load

logger = logging.getLogger("router.store")

PROGRAM = "sglang-d-router"
ASIDE = "before-fresh"  # where `--fresh` puts what was there


class StateRefused(StartError):
    """The state directory cannot be used. Exit status 2."""

    status = 2


@frozen
class Taken:
    """A state directory that is ours, and what was in it."""

    folder: Path
    lock: files.Lock
    loaded: Loaded
    journal: Journal
    # Seconds since the last sign of life of the router before; None: there was none.
    absence: float | None


def default_folder(port: int) -> Path:
    """Where a router on this port of this host keeps its state. Raises RuntimeError if the user
    has no home."""
    home = os.environ.get("XDG_STATE_HOME", "")
    base = Path(home) if os.path.isabs(home) else Path.home() / ".local" / "state"
    host = re.sub(r"[^A-Za-z0-9._-]", "_", socket.gethostname()) or "localhost"
    return base / PROGRAM / f"{host}-{port}"


def take(folder: Path, *, fresh: bool = False) -> Taken:
    """Take a state directory; make it if it is not there. `fresh` sets aside what is in it.

    Raises StateRefused if another router has it, or if it cannot be read; OSError if it cannot
    be written.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    absence = files.age(folder / files.LOCK)
    lock = files.Lock.take(folder)
    if lock is None:
        holder = files.holder(folder) or "unknown"
        raise StateRefused(
            f"Another router (process {holder}) keeps its state in {folder}; "
            "stop it, or take another --state-dir"
        )
    try:
        if fresh:
            _set_aside(folder)
        loaded = _load(folder)
        _mend(folder, loaded)
        return Taken(folder, lock, loaded, Journal.create(folder, loaded.last + 1), absence)
    except BaseException:
        lock.release()
        raise


def _load(folder: Path) -> Loaded:
    try:
        return load(folder)
    except Unreadable as error:
        raise StateRefused(
            f"The state in {folder} is not of this version: {error}; start the version that wrote "
            "it, or this one with --fresh"
        ) from error
    except Damaged as error:
        raise StateRefused(
            f"The state in {folder} is damaged: {error}; 'state check' tells more, and --fresh "
            "starts without it"
        ) from error


def _mend(folder: Path, loaded: Loaded) -> None:
    for path, why in loaded.corrupt:
        logger.error(
            "snapshot %s cannot be read and was set aside as %s.corrupt: %s; "
            "the one before it and the journals since hold everything",
            *(path, path.name, why),
        )
        os.replace(path, path.with_name(path.name + ".corrupt"))
    torn = loaded.torn
    if torn is not None:
        logger.warning(
            "journal %s was being written when the router ended: cut %d bytes that nobody was "
            "told of",
            *(torn.path, torn.size),
        )
        if torn.good:
            with torn.path.open("r+b") as file:
                file.truncate(torn.good)
                os.fsync(file.fileno())
        else:  # not even its first line: it was never used
            torn.path.unlink()
            loaded.last -= 1
    for path in folder.glob("*.tmp"):
        path.unlink()
    files.sync_folder(folder)


def _set_aside(folder: Path) -> None:
    aside = folder / ASIDE
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(aside)
    aside.mkdir(mode=0o700)
    for path in folder.glob("*.jsonl"):
        os.replace(path, aside / path.name)
    files.sync_folder(folder)
