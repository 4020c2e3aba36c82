"""What the launcher must remember over a restart of the router."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from attrs import field, frozen

from .base import Handle, WorkerPorts
from .masking import masked


@frozen
class LaunchRecord:
    """One launch. The record is durable before the worker is started, at first without `ident` and
    `process`. A router that finds it in that state asks the backend whether the token was ever
    used."""

    table: ClassVar[str] = "launches"

    launcher: str
    index: int
    name: str
    backend: str
    token: str
    fingerprint: str
    # For people, so without secrets; fingerprints are compared instead.
    command: tuple[str, ...] = field(converter=masked)
    ports: WorkerPorts
    log: str | None = None
    ident: str = ""
    process: str = ""
    restarts: int = 0

    @property
    def key(self) -> str:
        return f"{self.launcher}/{self.index}"

    @property
    def handle(self) -> Handle:
        """The handle by which the backend finds the launch."""
        log = None if self.log is None else Path(self.log)
        return Handle(self.token, self.ident, self.process, log)


@frozen
class SizeRecord:
    """Which workers of a launcher are wanted, if requests changed that.

    Valid as long as the settings ask for the same number as at that time.
    """

    table: ClassVar[str] = "launcher_sizes"

    launcher: str
    configured: int
    indices: tuple[int, ...]

    @property
    def key(self) -> str:
        return self.launcher
