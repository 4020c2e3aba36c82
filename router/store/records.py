"""What a record is. Each room defines its own: a frozen attrs class that cattrs structures."""

from __future__ import annotations

from typing import ClassVar, Protocol


class Record(Protocol):
    """One thing that must be known after a restart: a row of a table, under a key."""

    table: ClassVar[str]

    @property
    def key(self) -> str:
        """What names it within its table; a record with the same key replaces it."""
        ...
