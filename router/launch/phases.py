"""The phase of each launched worker, for people and `GET /workers`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from attrs import frozen

from ..bus import Event


class Phase(StrEnum):
    """What the launcher is doing about one worker."""

    QUEUED = "queued"  # not started yet: it waits for room, for an engine or for the disk
    STARTING = "starting"  # its process runs, and has not served yet
    READY = "ready"  # it has served since its start
    RESTARTING = "restarting"  # it has died, and starts again after a pause
    DOWN = "down"  # it died while it slept, and starts again at the next wake
    ENDING = "ending"
    EXITED = "exited"  # it has exited, and its restart policy does not restart it
    FAILED = "failed"  # given up: it could not be started, or died too often too soon


@frozen
class SlotView:
    """One launched worker at one moment."""

    name: str
    launcher: str
    index: int
    phase: Phase
    since: float  # when the phase began, on trio's clock
    url: str | None = None
    pid: int | None = None
    restarts: int = 0
    detail: str | None = None  # why it is so, in a sentence
    last_line: str | None = None  # of its log; updated while it starts
    log: Path | None = None
    gpus: tuple[str, ...] = ()

    @property
    def over(self) -> bool:
        """Whether it has exited for good, unless a request restarts it."""
        return self.phase in (Phase.EXITED, Phase.FAILED)


@frozen
class PhaseChanged(Event):
    """The launched worker of this name has entered another phase; `detail` says why. The phase
    before, `old`, has lasted `seconds`."""

    name: str
    phase: Phase
    detail: str | None
    launcher: str
    old: Phase
    seconds: float
