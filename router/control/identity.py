"""Is it still the same process? The evidence that tells one process of a worker from the next.

No endpoint of a worker tells. The first evidence is one idle connection to each worker, on which
nothing is ever written: a worker keeps such a connection open, and when its process dies the end of
file arrives within milliseconds. Then provers with better knowledge are asked (the launcher, by pid
and start time). After them the worker itself is asked for jobs and images that it made: these exist
only in the memory of its process, so an asset that the worker still knows is proof.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from enum import StrEnum
from typing import TypeAlias

import trio
from attrs import define, field

from ..net.addresses import Addresses, Origin
from ..net.lookup import Unresolved
from ..net.trust import Trust
from ..pool.assets import AssetKind, AssetMap, Made
from ..pool.worker import Worker
from ..text import segment
from .client import ControlClient, Unreachable

_MOST_ASKED = 3
_PATIENCE = 5.0  # seconds for an answer; reads of jobs and images queue behind nothing

# The answers for an image that is in the worker's table but has no file to give: the file was not
# kept, is not written yet, or is stored elsewhere.
_KNOWS_IMAGE = ("Image was not persisted", "Image is still being", "Image has been uploaded")

CONNECT_TIMEOUT = 5.0  # seconds
# A machine that loses power, or sits behind a broken network, sends no end of file. So the kernel
# probes the connection: a machine that is reachable again and does not know the connection says so.
# Long patience (ten minutes) costs nothing: a network failure is no restart. Seconds, and a count.
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 120}
_CHALLENGE = {"TCP_KEEPIDLE": 1, "TCP_KEEPINTVL": 1}
_CHALLENGED = 1.5  # seconds until the answer has arrived
# After this many meaningless ends in a row, ends are no evidence any more.
_MOST_VAIN = 3
# Ends this regular are not process deaths: tolerance as a share of the connection's duration, and
# in seconds.
_ALIKE, _ALIKE_AT_LEAST = 0.1, 0.5
_MUCH_LONGER, _MUCH_LONGER_AT_LEAST = 2.0, 1.0


class Verdict(StrEnum):
    """Whether the process behind a URL is the one that was there before."""

    SAME = "same"
    OTHER = "other"
    UNKNOWN = "unknown"  # there is no evidence
    SILENT = "silent"  # no answer came: ask again


Prover: TypeAlias = Callable[[Worker], Awaitable[Verdict]]
"""Tells whether the process is that of the worker's present incarnation; must not raise."""


def trusts_absence(absence: float | None, trust_downtime: float) -> bool:
    """Whether restored workers count as the same processes without proof (`--trust-downtime`).

    `absence`: seconds without a running router; None if unknown, and then the result is False.
    """
    return absence is not None and 0 <= absence < trust_downtime


@define(eq=False)
class ProcessIdentity:
    """Finds out whether a worker's process is still the known one."""

    assets: AssetMap
    client: ControlClient
    provers: list[Prover] = field(factory=list)  # asked in this order, before the worker itself

    def recall(self, worker: Worker) -> tuple[Made, ...]:
        """Assets that the known process has made and that can testify for it.

        Call this at the moment of the suspicion: later assets may come from another process.
        """
        return self.assets.latest(worker)

    async def judge(self, worker: Worker, recalled: Iterable[Made]) -> Verdict:
        """Whether the process is the one that made these assets."""
        silent = False
        for prove in self.provers:
            verdict = await prove(worker)
            if verdict is Verdict.SAME or verdict is Verdict.OTHER:
                return verdict
            silent = silent or verdict is Verdict.SILENT
        verdict = await self._ask(worker, recalled)
        return Verdict.SILENT if silent and verdict is Verdict.UNKNOWN else verdict

    async def _ask(self, worker: Worker, recalled: Iterable[Made]) -> Verdict:
        asked = denied = 0
        for made in recalled:
            if asked == _MOST_ASKED:
                break
            if not self.assets.has(made):
                continue  # deleted since
            asked += 1
            try:
                knows = await self._knows(worker, made)
            except Unreachable:
                return Verdict.SILENT
            if knows:
                return Verdict.SAME
            denied += knows is False
        return Verdict.OTHER if asked and denied == asked else Verdict.UNKNOWN

    async def _knows(self, worker: Worker, made: Made) -> bool | None:
        """Whether the worker knows the asset that it made; None if its answer does not tell. Raises
        Unreachable."""
        path = f"/v1/{made.owner.kind}/{segment(made.asset_id)}"
        if made.owner.kind is AssetKind.IMAGE:
            path += "/content"
            # A full GET would fetch megabytes.
            status = await self.client.status(worker.url, path, within=_PATIENCE)
            if status in (200, 206):
                return True
        answer = await self.client.get(worker.url, path, within=_PATIENCE)
        said = answer.fields
        if made.owner.kind is AssetKind.IMAGE:
            detail = said.get("detail")
            if answer.status in (400, 404) and str(detail).startswith(_KNOWS_IMAGE):
                return True
        elif answer.status == 200:
            # A proxy may answer anything with 200.
            return True if said.get("id") == made.asset_id else None
        return False if answer.status == 404 else None


@define
class Evidence:
    """Whether the end of a worker's idle connection means that its process has ended.

    Something in between (a proxy, a tunnel) may end it again and again while the process lives.
    Then ends are no evidence, until a connection lasts much longer than the ones before.
    """

    # Durations of the last connections whose ends meant nothing, in seconds.
    _vain: list[float] = field(init=False, factory=list)
    # Duration of the connection whose end is not explained yet, in seconds.
    _open: float | None = field(init=False, default=None)

    @property
    def counts(self) -> bool:
        return len(self._vain) < _MOST_VAIN

    def ended(self, lasted: float) -> bool:
        """The connection has ended after `lasted` seconds; returns whether the end is evidence."""
        if not self.counts:
            usual = max(self._vain)
            if lasted > max(_MUCH_LONGER * usual, usual + _MUCH_LONGER_AT_LEAST):
                self._vain.clear()
        self._open = lasted
        return self.counts

    def take(self) -> float | None:
        """The duration of the connection whose end is to be explained now, or None."""
        lasted, self._open = self._open, None
        return lasted

    def was_vain(self, lasted: float, *, proven: bool) -> None:
        """The worker was well right after that end; `proven`: its process is the same. Without
        proof, the end counts as meaningless only if the ends are regular."""
        if not proven:
            if not self.counts:
                return
            if self._vain and abs(lasted - self._vain[-1]) > max(_ALIKE_AT_LEAST, _ALIKE * lasted):
                self._vain.clear()
        self._vain = [*self._vain, lasted][-_MOST_VAIN:]

    def was_true(self) -> None:
        """The process has ended, or the worker was out of reach for a while."""
        self._vain.clear()


async def open_idle(url: str, addresses: Addresses, trust: Trust) -> trio.abc.Stream | None:
    """Open the idle connection to the URL's present address. None if that fails: the probe that
    runs next finds the cause. Raises Unresolved."""
    origin = Origin.of(url)
    stream: trio.abc.Stream | None = None
    opened = False
    try:
        with trio.move_on_after(CONNECT_TIMEOUT):
            stream = plain = await addresses.meet(origin)
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            _set(plain, _KEEPALIVE)
            if origin.scheme == "https":
                # Without a handshake the worker would close the connection as a stalled client.
                stream = secure = trio.SSLStream(
                    plain,
                    trust.tls,
                    server_hostname=origin.host,
                    https_compatible=True,
                )
                await secure.do_handshake()
            opened = True
    except Unresolved:
        raise
    except (OSError, trio.BrokenResourceError, ssl.SSLError):
        pass
    finally:
        if stream is not None and not opened:
            await trio.aclose_forcefully(stream)
    return stream if opened else None


async def challenge(stream: trio.abc.Stream) -> None:
    """Have the kernel ask whether the other side still has the connection, and wait for the answer.
    If the other side does not have it, the connection has ended by then."""
    plain = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
    if isinstance(plain, trio.SocketStream):
        with suppress(trio.ClosedResourceError, OSError):
            _set(plain, _CHALLENGE)
            await trio.sleep(_CHALLENGED)
            _set(plain, _KEEPALIVE)


def _set(stream: trio.SocketStream, options: Mapping[str, int]) -> None:
    for name, value in options.items():
        if hasattr(socket, name):
            stream.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


async def wait_closed(stream: trio.abc.Stream) -> str:
    """Wait until the worker ends the idle connection; returns how it ended, and closes our side."""
    try:
        data = await stream.receive_some(1)
        return "it sent bytes that nobody asked for" if data else "its idle connection was closed"
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return "its idle connection was reset"
    finally:
        await trio.aclose_forcefully(stream)
