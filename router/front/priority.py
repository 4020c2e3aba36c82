"""How urgent a request is: asked for by its client, within what the client's key may ask."""

from __future__ import annotations

from enum import StrEnum


class Priority(StrEnum):
    """The most urgent first."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"

    @property
    def level(self) -> int:
        """0 for the most urgent."""
        return _LEVELS[self]

    def within(self, most: Priority) -> Priority:
        """The same, or the most urgent that may be asked for."""
        return self if self.level >= most.level else most


_LEVELS = {priority: level for level, priority in enumerate(Priority)}
