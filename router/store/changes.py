"""A set of changes to the tables: pending changes, or the sum of a journal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from attrs import define, field


class _Deleted:
    def __repr__(self) -> str:
        return "DELETED"


DELETED: Final = _Deleted()

Tables = dict[str, dict[str, Any]]
Op = Sequence[Any]  # ["put", table, key, value], ["del", table, key] or ["clear", table]


@define(eq=False)
class Changes:
    """Changes by table and key; a later change replaces an earlier one of the same key.

    The set therefore never outgrows the tables. Tables keep the order of the last puts.
    """

    # Puts and deletions; for a cleared table, only those since it was cleared.
    tables: Tables = field(factory=dict)
    cleared: dict[str, None] = field(factory=dict)
    # Keys that no file can hold yet: deleting one leaves no trace.
    _new: dict[str, set[str]] = field(init=False, factory=dict)

    def __bool__(self) -> bool:
        return bool(self.tables or self.cleared)

    def __len__(self) -> int:
        return len(self.cleared) + sum(map(len, self.tables.values()))

    def put(self, table: str, key: str, value: Any, *, new: bool = False) -> None:
        """Enter a row. `new`: no row had this key before."""
        rows = self.tables.setdefault(table, {})
        if new and key not in rows:
            self._new.setdefault(table, set()).add(key)
        rows.pop(key, None)
        rows[key] = value

    def delete(self, table: str, key: str) -> None:
        rows = self.tables.setdefault(table, {})
        rows.pop(key, None)
        new = self._new.get(table)
        if new is None or key not in new:
            rows[key] = DELETED
            return
        new.discard(key)
        if not rows:
            del self.tables[table]

    def clear(self, table: str) -> None:
        """Drop all rows of a table."""
        self.tables.pop(table, None)
        self._new.pop(table, None)
        self.cleared[table] = None

    def follow(self, later: Changes) -> None:
        """Add later changes after these."""
        for table in later.cleared:
            self.clear(table)
        for table, rows in later.tables.items():
            new = later._new.get(table, ())
            for key, value in rows.items():
                if value is DELETED:
                    self.delete(table, key)
                else:
                    self.put(table, key, value, new=key in new)

    def apply(self, op: Op) -> None:
        """Enter an op of a journal. Raises ValueError if it is not a valid op."""
        match op:
            case ["put", str(table), str(key), value]:
                self.put(table, key, value)
            case ["del", str(table), str(key)]:
                self.delete(table, key)
            case ["clear", str(table)]:
                self.clear(table)
            case _:
                raise ValueError(f"unknown change: {op!r:.100}")

    def ops(self) -> Iterator[Op]:
        """All changes as ops of a journal."""
        for table in self.cleared:
            yield ["clear", table]
        for table, rows in self.tables.items():
            for key, value in rows.items():
                yield ["del", table, key] if value is DELETED else ["put", table, key, value]

    def onto(self, tables: Tables) -> None:
        """Apply the changes to whole tables."""
        for table in self.cleared:
            tables.pop(table, None)
        for table, rows in self.tables.items():
            there = tables.setdefault(table, {})
            for key, value in rows.items():
                there.pop(key, None)
                if value is not DELETED:
                    there[key] = value
            if not there:
                del tables[table]
