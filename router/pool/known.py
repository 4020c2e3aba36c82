"""What of a worker outlives the process."""

from __future__ import annotations

from typing import ClassVar

from attrs import frozen

from .worker import Admin, Capabilities, Memory, Origin, Worker


@frozen
class WorkerRecord:
    """A worker, as it was known last. Not its health: that is found out anew."""

    table: ClassVar[str] = "workers"

    url: str
    number: int  # in order of registration
    origin: Origin
    registered: bool = False
    admin: Admin = Admin.ENABLED
    # Awake or asleep: what is not known to be awake counts as asleep.
    memory: Memory = Memory.AWAKE
    incarnation: int = 1
    # None: no process was probed well yet.
    capabilities: Capabilities | None = None
    # What an operator set, if he did; else what the flags say counts.
    concurrency: int | None = None
    concurrency_set: bool = False
    aliases: tuple[str, ...] = ()
    leaving: str | None = None  # why it is to be removed once its work has ended

    @property
    def key(self) -> str:
        return self.url

    @classmethod
    def of(cls, worker: Worker) -> WorkerRecord:
        """The record of a worker as it is now."""
        concurrency_set = worker.concurrency_limit != worker.concurrency_default
        return cls(
            url=worker.url,
            number=worker.number,
            origin=worker.origin,
            registered=worker.registered,
            admin=worker.admin,
            memory=Memory.AWAKE if worker.memory is Memory.AWAKE else Memory.ASLEEP,
            incarnation=worker.incarnation,
            capabilities=worker.capabilities,
            concurrency=worker.concurrency_limit if concurrency_set else None,
            concurrency_set=concurrency_set,
            aliases=worker.aliases,
            leaving=worker.leaving,
        )
