"""Lets the live page glimpse at images as they pass (`--dashboard-previews`)."""

from __future__ import annotations

from attrs import define, field

from ..observe.previews import Glimpse, Previews
from ..pool.worker import Lease
from .routes import Route
from .watcher import NO_WATCHER, Watcher

_ROUTES = ("/v1/images/generations", "/v1/images/edits", "/v1/images/{id}/content")


@define(eq=False)
class _Tapped:
    """Another watcher, and a glimpse."""

    inner: Watcher
    previews: Previews
    path: str
    holds: int = 0
    _glimpse: Glimpse | None = field(init=False, default=None)

    def begin(self, lease: Lease, status: int, encoding: bytes | None) -> None:
        self.inner.begin(lease, status, encoding)
        self.holds = self.inner.holds
        self._glimpse = None
        if status == 200 and encoding is None:
            worker, version = lease.worker.worker_id, lease.weight_version
            self._glimpse = self.previews.begin(worker, version, self.path)

    def saw(self, piece: bytes) -> None:
        self.inner.saw(piece)
        if self._glimpse is not None:
            self._glimpse.saw(piece)

    def over(self) -> None:
        self.inner.over()
        if self._glimpse is not None:
            self._glimpse.over()
            self._glimpse = None

    async def durable(self) -> None:
        await self.inner.durable()


def tapped(previews: Previews, route: Route, path: str, inner: Watcher | None) -> Watcher | None:
    """The watcher, which also looks for an image if the route may answer with one."""
    if route.path not in _ROUTES:
        return inner
    return _Tapped(inner or NO_WATCHER, previews, path)
