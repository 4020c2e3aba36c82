"""What a record is. Each room defines its own: a frozen attrs class that cattrs structures."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol, TypeVar

from cattrs.preconf.json import make_converter


class Record(Protocol):
    """One thing that must be known after a restart: a row of a table, under a key."""

    table: ClassVar[str]

    @property
    def key(self) -> str:
        """What names it within its table; a record with the same key replaces it."""
        ...


R = TypeVar("R", bound=Record)

# Unknown fields are passed over and missing ones take their default: a room may add a field
# without a new format, and an older program reads what a newer one of the same format wrote.
_converter = make_converter()


def unstructured(record: Record) -> Any:
    """The record as JSON values."""
    return _converter.unstructure(record)


def structured(value: Any, kind: type[R]) -> R:
    """The record of such values. Raises whatever cattrs finds wrong with them."""
    return _converter.structure(value, kind)
