"""Names whose every address is a separate worker (`--resolve-all`), such as headless services."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from ipaddress import ip_address
from typing import Any, ClassVar

import trio
from attrs import define, evolve, field, frozen

from ..boundary import contained
from ..net.addresses import Addresses, NotOneAddress, Origin
from ..net.lookup import Silent
from ..pool import events
from ..pool.ids import BadWorkerURL, normalise_url, url_of
from ..pool.pools import USUAL, Role
from ..pool.registry import Registry
from ..pool.worker import Origin as WorkerOrigin
from ..pool.worker import Worker
from ..store.store import Store
from .agent import Agents, RemovalCalledOff

logger = logging.getLogger("router.control")

# An address leaves after this many answers without it: some servers return only a part.
_MISSED = 2
# The reason with which a worker leaves when its name no longer leads to it.
_GONE = "its host name no longer resolves to it"


@frozen
class NameRecord:
    """A followed name, and the workers that it led to last."""

    table: ClassVar[str] = "names"

    url: str
    registered: bool  # by a request; else by a flag
    concurrency: int | None = None
    members: tuple[str, ...] = ()
    role: Role | None = None  # set by a request; else the flags decide

    @property
    def key(self) -> str:
        return self.url


@define(eq=False)
class _Name:
    record: NameRecord
    missed: dict[str, int] = field(factory=dict)  # answers in a row without the member
    # Members removed by other code or a request: they stay away while the name leads to them.
    left_out: set[str] = field(factory=set)


@define(eq=False)
class Names:
    """Keeps one worker for each address of each name. `interval`: seconds between two look-ups."""

    store: Store
    registry: Registry
    agents: Agents
    addresses: Addresses
    enabled: bool = False
    interval: float = 10.0
    _names: dict[str, _Name] = field(init=False, factory=dict)

    def takes(self, url: str) -> bool:
        """Whether every address of the URL's host becomes a worker. Not for `localhost`: its
        addresses all belong to one machine."""
        host = Origin.of(url).host
        with suppress(ValueError):
            ip_address(host)
            return False
        return self.enabled and host != "localhost"

    def restore(self, static: Mapping[str, int | None]) -> dict[str, int | None]:
        """The static workers, with each name replaced by its last members. Raises StateRefused."""
        for record in self.store.restored(NameRecord).values():
            if self.enabled and (record.registered or record.url in static):
                self._names[record.url] = _Name(record)
                continue
            self.store.delete(NameRecord, record.url)
            if record.registered:
                logger.warning("%s is no longer followed: --resolve-all is not set", record.url)
        workers = {}
        for url, slots in static.items():
            if not self.takes(url):
                workers[url] = slots
            elif url not in self._names:
                self._names[url] = _Name(NameRecord(url, registered=False, concurrency=slots))
            else:
                name = self._names[url]
                name.record = evolve(name.record, concurrency=slots)
        for name in self._names.values():
            workers |= dict.fromkeys(name.record.members, name.record.concurrency)
            self.registry.roles |= dict.fromkeys(name.record.members, self._role(name))
        return workers

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look up all followed names at each interval; never returns."""
        self.registry.subscribe(self._observe, events.WorkerRemoved)
        task_status.started()
        while True:
            async with trio.open_nursery() as looking:
                for name in self._names.values():
                    looking.start_soon(self._refresh, name)
            await trio.sleep(self.interval)

    async def follow(
        self, url: str, concurrency: int | None, role: Role | None = None
    ) -> list[Worker]:
        """Follow a name from now on; returns its workers. Raises BadWorkerURL."""
        name = self._names.get(url)
        if name is None:
            name = _Name(NameRecord(url, registered=True, concurrency=concurrency))
        try:
            found = await self._find(name)
        except NotOneAddress as error:
            raise BadWorkerURL(f"Worker URL {url} is refused: {error}") from None
        name = self._names.setdefault(url, name)
        if concurrency is None:
            concurrency = name.record.concurrency
        role = role or name.record.role
        self._put(name, registered=True, concurrency=concurrency, role=role)
        if found is not None:
            self._apply(name, found)
        return self.members(url)

    def members(self, url: str) -> list[Worker]:
        """The workers of a followed name."""
        found = map(self.registry.find, self._names[url].record.members)
        return [worker for worker in found if worker is not None]

    def grants(self, url: str) -> bool:
        """Whether the worker was found behind a name that may lead anywhere."""
        verdict = self.addresses.allowed.verdict
        return any(
            url in name.record.members and verdict(Origin.of(name.record.url).host)
            for name in self._names.values()
        )

    def find(self, worker_id: str) -> str | None:
        """The URL of a followed name, by its id or URL; None if the name is not followed."""
        with suppress(BadWorkerURL):
            url = url_of(worker_id)
            return url if url in self._names else None
        return None

    async def remove(self, url: str, *, drain: bool) -> None:
        """Stop following the name and remove its workers. A drain goes on if the caller leaves."""
        members = self.members(url)
        del self._names[url]
        self.store.delete(NameRecord, url)
        for worker in members:
            if drain:
                self.registry.retire(worker, "by request")
            else:
                self.registry.remove(worker)
        await self.store.commit()
        for worker in members if drain else ():
            with suppress(RemovalCalledOff):
                await self.agents.retired(worker)
        await self.store.commit()

    async def _refresh(self, name: _Name) -> None:
        url = name.record.url
        with contained("worker", f"following {url}"):
            try:
                found = await self._find(name)
            except NotOneAddress as error:
                logger.warning("%s: its workers stay as they are: %s", url, error)
                return
            if found is not None and self._names.get(url) is name:
                self._apply(name, found)

    async def _find(self, name: _Name) -> list[str] | None:
        """The URLs of the name's workers; None if no name server answers. Raises NotOneAddress."""
        origin = Origin.of(name.record.url)
        try:
            found = await self.addresses.all_of(origin)
        except Silent:
            return None
        hosts = [f"[{address}]" if ":" in address else address for address in found]
        return [normalise_url(f"{origin.scheme}://{host}:{origin.port}") for host in hosts]

    def _apply(self, name: _Name, found: list[str]) -> None:
        members = list(name.record.members)
        name.left_out.intersection_update(found)
        for url in found:
            name.missed.pop(url, None)
            worker = self.registry.find(url)
            if worker is not None and worker.leaving == _GONE:
                self.registry.stay(worker, "its host name resolves to it again")
            elif worker is None and url not in name.left_out:
                members += [] if url in members else [url]
                logger.info("%s resolves to %s, which joins", name.record.url, url)
                slots, role = name.record.concurrency, self._role(name)
                self.registry.add(url, WorkerOrigin.STATIC, concurrency=slots, role=role)
        for url in [member for member in members if member not in found]:
            name.missed[url] = name.missed.get(url, 0) + 1
            worker = self.registry.find(url)
            if worker is not None and name.missed[url] >= _MISSED and worker.leaving is None:
                logger.info("%s no longer resolves to %s, which leaves", name.record.url, url)
                self.registry.retire(worker, _GONE)
        if tuple(members) != name.record.members:
            self._put(name, members=tuple(members))

    def _role(self, name: _Name) -> Role:
        return name.record.role or self.registry.roles.get(name.record.url, USUAL)

    def _put(self, name: _Name, **changes: Any) -> None:
        name.record = evolve(name.record, **changes)
        self.store.put(name.record)

    def _observe(self, event: events.Event) -> None:
        url = event.worker.url
        for name in self._names.values():
            if url in name.record.members:
                name.missed.pop(url, None)
                if event.worker.leaving != _GONE:
                    name.left_out.add(url)
                rest = tuple(member for member in name.record.members if member != url)
                self._put(name, members=rest)
