"""A name server for tests: the resolver that the router asks, answered from a table."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Iterator

import pytest
from attrs import Factory, define

from router.net import lookup


@define(eq=False)
class Names:
    """What names lead to. One that is not in `table` does not exist; `silent` ones hang."""

    table: dict[str, list[str]] = Factory(dict)
    silent: set[str] = Factory(set)
    asked: Counter[str] = Factory(Counter)
    hanging: int = 0
    _over: threading.Event = Factory(threading.Event)

    def __call__(self, host: str) -> list[str]:
        self.asked[host] += 1
        if host in self.silent:
            self.hanging += 1
            self._over.wait(60)
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        if host not in self.table:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return self.table[host]

    def end(self) -> None:
        self._over.set()


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    """The names that a router in this test knows."""
    known = Names()
    monkeypatch.setattr(lookup, "ask_system", known)
    yield known
    known.end()
