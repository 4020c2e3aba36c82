"""The protocol of records. Each package defines its own: frozen attrs classes for cattrs."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol, TypeVar

from cattrs.preconf.json import make_converter


class Record(Protocol):
    """A fact that must survive a restart: a row of a table, under a key."""

    table: ClassVar[str]

    @property
    def key(self) -> str:
        """The record's name within its table; a record with the same key replaces it."""
        ...


R = TypeVar("R", bound=Record)

# Unknown fields are ignored and missing fields take their defaults. So a package may add a field
# without a new format, and an older program can read what a newer program of the same format wrote.
_converter = make_converter()


def unstructured(record: Record) -> Any:
    """The record as JSON values."""
    return _converter.unstructure(record)


def structured(value: Any, kind: type[R]) -> R:
    """The record from JSON values. Raises any error of cattrs."""
    return _converter.structure(value, kind)
