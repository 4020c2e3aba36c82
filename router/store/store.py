"""The records of this router: what was there at the start, and what is put since."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar, cast

import trio
from attrs import define, field

from ..errors import StateUnavailable
from .records import Record

R = TypeVar("R", bound=Record)


@define(eq=False)
class Store:
    """Keeps records; without a directory, for as long as the process lives.

    `put` and `delete` take effect at once here and on the disk soon after, in their order.
    Whoever acknowledges something awaits `commit` first.
    """

    # Why records cannot be made durable now, in one sentence; None while they can.
    failing: str | None = None
    # Where they are kept; None: nowhere.
    folder: Path | None = None
    _tables: dict[str, dict[str, Record]] = field(init=False, factory=dict, repr=False)

    def restored(self, kind: type[R]) -> dict[str, R]:
        """The records of one table by key, as they were found at the start."""
        return cast("dict[str, R]", dict(self._tables.get(kind.table, {})))

    def put(self, record: Record) -> None:
        """Enter a record, or replace the one of the same key."""

    def delete(self, kind: type[Record], key: str) -> None:
        """Drop a record, if it is there."""

    def check(self) -> None:
        """Refuse what could not be made durable, before it is begun. Raises StateUnavailable."""
        if self.failing is not None:
            raise StateUnavailable(f"The router cannot write its state: {self.failing}")

    async def commit(self) -> None:
        """Wait until all that was put so far is durable. Raises StateUnavailable."""
        await trio.lowlevel.checkpoint()
        self.check()
