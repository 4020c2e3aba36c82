"""What the launcher must know after a restart of the router."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from attrs import field, frozen

from .base import Handle, WorkerPorts
from .masking import masked


@frozen
class LaunchRecord:
    """One launch. It is durable before the worker is started, then without `ident` and `process`:
    whoever finds it so asks the backend whether the token was ever used."""

    table: ClassVar[str] = "launches"

    launcher: str
    index: int
    name: str
    backend: str
    token: str
    fingerprint: str
    # For people, so without its secrets; compared are fingerprints.
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
        """What its backend finds it by."""
        log = None if self.log is None else Path(self.log)
        return Handle(self.token, self.ident, self.process, log)


@frozen
class SizeRecord:
    """Which workers of a launcher are wanted, where requests changed that.

    It holds as long as the settings want as many as they did then.
    """

    table: ClassVar[str] = "launcher_sizes"

    launcher: str
    configured: int
    indices: tuple[int, ...]

    @property
    def key(self) -> str:
        return self.launcher
