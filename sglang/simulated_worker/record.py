"""What a worker did, for tests: read by `GET /simulate/log` and as `SimulatedWorker.log`.

All times are `time.monotonic()` seconds: comparable between processes of one machine.
"""

from __future__ import annotations

import os
import time
import uuid
from collections import deque
from typing import Any

from attrs import asdict, define, field

_KEPT_WORK = 20_000
_KEPT_REQUESTS = 5_000


def now() -> float:
    return time.monotonic()


@define(eq=False)
class WorkEntry:
    """One thing that the scheduler did: a generation or a control call."""

    kind: str
    """`image`, `video`, `mesh`, `rollout`, `action`, `realtime`, or the name of a control call."""
    id: str
    queued: float
    start: float | None = None
    end: float | None = None
    weights: str = ""
    """Identity of the weights it ran with; after an update, of the new ones."""
    model_path: str = ""
    """Where the first module's weights came from, as last given to a disk update."""
    lora: str = ""
    copy: int = 0
    """Which data-parallel copy ran it."""
    batch: int = 1
    """How many requests ran together with it, itself included."""
    outcome: str = "waiting"
    """`waiting`, `running`, `done`, `failed: ...`."""
    request_id: str = ""
    facts: dict[str, Any] = field(factory=dict)

    @property
    def seconds(self) -> float:
        """From start to end; 0 while it is not over."""
        return 0.0 if self.start is None or self.end is None else self.end - self.start


@define(eq=False)
class RequestEntry:
    """One HTTP request or WebSocket session, `/simulate` ones left out."""

    connection: int
    method: str
    target: str
    headers: list[tuple[str, str]]
    start: float
    request_id: str = ""
    host: str = ""
    end: float | None = None
    status: int | None = None
    body_bytes: int = 0
    body_sha256: str | None = None
    """Known once the whole body was read."""
    sent_bytes: int = 0
    client_gone: float | None = None
    """When the client was seen to leave before the answer was complete."""
    faults: list[str] = field(factory=list)


@define(eq=False)
class Record:
    """The log of one worker. Bounded: the oldest entries go first."""

    work: deque[WorkEntry] = field(factory=lambda: deque(maxlen=_KEPT_WORK))
    requests: deque[RequestEntry] = field(factory=lambda: deque(maxlen=_KEPT_REQUESTS))
    incarnation: str = field(factory=lambda: uuid.uuid4().hex)
    started: float = field(factory=now)
    accepted: int = 0
    open: int = 0
    most_open: int = 0

    def clear(self) -> None:
        """Forgets the entries, not the counts of connections."""
        self.work.clear()
        self.requests.clear()

    def generations(self) -> list[WorkEntry]:
        kinds = {"image", "video", "mesh", "rollout", "action", "realtime"}
        return [entry for entry in self.work if entry.kind in kinds]

    def as_json(self) -> dict[str, Any]:
        return {
            "now": now(),
            "started": self.started,
            "pid": os.getpid(),
            "incarnation": self.incarnation,
            "connections": {
                "open": self.open,
                "accepted": self.accepted,
                "most_open": self.most_open,
            },
            "entries": [asdict(entry) for entry in self.work],
            "requests": [asdict(entry) for entry in self.requests],
        }
