"""What of the ledgers outlives the process."""

from __future__ import annotations

from typing import ClassVar, Protocol

from attrs import field, frozen

from .recipe import Recipe


@frozen
class LedgerRecord:
    """One model's ledger. `issued`: the highest number that was ever given out; `since`: the
    highest one of before a reset."""

    table: ClassVar[str] = "ledgers"

    model: str
    version: int = 0
    issued: int = 0
    label: str | None = None
    recipe: Recipe = field(factory=Recipe)
    last_error: str | None = None
    since: int = 0

    @property
    def key(self) -> str:
        return self.model


@frozen
class WeightRecord:
    """What one worker has of its model's ledger; see `Standing`."""

    table: ClassVar[str] = "weights"

    url: str
    model: str | None
    base: int | None
    loras: int | None
    wrapped: bool
    doubt: bool = False  # whether this was the process of which all that was known

    @property
    def key(self) -> str:
        return self.url


@frozen
class ChangeRecord:
    """A change that was begun, or that waits for its workers to wake (`pending`).

    `body` is None where it cannot be repeated: tensors, or a transaction of many calls.
    """

    table: ClassVar[str] = "changes"

    change_id: str
    model: str
    number: int  # in order of arrival
    path: str
    body: str | None
    label: str | None
    workers: tuple[str, ...]  # URLs
    pending: bool

    @property
    def key(self) -> str:
        return self.change_id


Paperwork = LedgerRecord | WeightRecord | ChangeRecord


class Paper(Protocol):
    """Where the records go: the store, or nowhere."""

    def put(self, record: Paperwork) -> None:
        """Enter a record, or replace the one of the same key."""
        ...

    def delete(self, kind: type[Paperwork], key: str) -> None:
        """Drop a record, if it is there."""
        ...


class NoPaper:
    """Keeps nothing."""

    def put(self, record: Paperwork) -> None:
        """Forget it."""

    def delete(self, kind: type[Paperwork], key: str) -> None:
        """There is none."""
