"""The router's disk: it may be full, fail, be slow, and lose what was not synced.

The files are real ones, in memory. `router.store.files` is where the router changes them, and
there this disk comes in between. A router that has crashed changes nothing any more.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import trio
from attrs import define, field

from router.store import files
from tests.simulation.universe import LIFE, Universe

_SMALL = 16 * 1024  # bytes of journals after which a snapshot is made
_EPOCH = 1_800_000_000.0  # by the clock on the wall, when a history begins


@define(eq=False)
class Disk:
    """One disk, which outlives the router's lives."""

    universe: Universe
    folder: Path
    dice: random.Random
    full: bool = False
    failing: bool = False  # its syncs do
    slow: float = 0.0  # seconds
    crash_in: int | None = None  # changes
    _durable: dict[int, int] = field(init=False, factory=dict)  # sizes by inode
    _renamed: list[Path] = field(init=False, factory=list)  # since the folder was synced
    _touched: dict[Path, float] = field(init=False, factory=dict)

    def install(self, stack: contextlib.ExitStack) -> None:
        write, truncate = files.write, files.truncate
        replace, unlink, sync_folder = files.replace, files.unlink, files.sync_folder

        def writes(fd: int, data: bytes) -> None:
            part = self.dice.randrange(len(data) + 1)
            self._change(lambda: write(fd, data[:part]))
            if self.full:
                write(fd, data[:part])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            write(fd, data)

        def syncs(fd: int) -> None:
            self._change(lambda: None)
            if self.failing:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            told = os.fstat(fd)
            self._durable[told.st_ino] = told.st_size

        def replaces(path: Path, target: Path) -> None:
            self._change(lambda: None)
            self._renamed.append(target)
            replace(path, target)

        def syncs_folder(folder: Path) -> None:
            self._change(lambda: None)
            if self.failing:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            sync_folder(folder)
            self._renamed.clear()

        def plainly(act: Callable[..., None]) -> Callable[..., None]:
            def changes(*args: Any) -> None:
                self._change(lambda: None)
                act(*args)

            return changes

        def touches(path: Path) -> None:
            self._change(lambda: None)
            self._touched[path] = trio.current_time()

        def age(path: Path) -> float | None:
            touched = self._touched.get(path)
            return None if touched is None else trio.current_time() - touched

        for name, stand_in in {
            "write": writes,
            "sync": syncs,
            "truncate": plainly(truncate),
            "replace": replaces,
            "unlink": plainly(unlink),
            "sync_folder": syncs_folder,
            "touch": touches,
            "age": age,
        }.items():
            stack.enter_context(mock.patch.object(files, name, stand_in))
        stack.enter_context(mock.patch("router.store.store._LEAST", _SMALL))
        stack.enter_context(mock.patch("router.wall.seconds", self._wall))

    def _wall(self) -> float:
        return _EPOCH + self.universe.now

    def _change(self, half: Callable[[], None]) -> None:
        """Something is about to be changed; `half` does a part of it."""
        life = LIFE.get()
        if life is not None and not life.dead and self.crash_in is not None:
            self.crash_in -= 1
            if self.crash_in <= 0:
                self.crash_in = None
                half()
                self.universe.note("the disk", "the router ends within a change")
                life.crash()
        if life is None or life.dead:
            raise OSError(errno.EIO, "this router is dead")

    def heal(self) -> None:
        self.full = self.failing = False
        self.slow, self.crash_in = 0.0, None

    def lose_power(self) -> None:
        """What was not synced may be gone."""
        lost = 0
        for path in sorted(self.folder.glob("*.jsonl")):
            told = path.stat()
            durable = self._durable.get(told.st_ino, 0)
            if durable < told.st_size:
                kept = self.dice.randrange(durable, told.st_size + 1)
                os.truncate(path, kept)
                lost += told.st_size - kept
        for path in self._renamed:
            if self.dice.random() < 0.5:
                path.unlink(missing_ok=True)
                lost += 1
        self._renamed.clear()
        self.universe.note("the disk", f"loses power, and {lost} bytes or names")
