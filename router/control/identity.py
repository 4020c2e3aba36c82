"""Is it still the same process? What tells one process of a worker from the next.

No endpoint of a worker says. One idle connection to each worker, on which nothing is ever written,
is evidence: a worker keeps such a connection open; when its process dies the end of file arrives
within milliseconds. Then whoever knows more (the launcher, by pid and start time) is asked first,
and after that the worker itself, for jobs and images that it made: these are in the memory of its
process and nowhere else, so one that it still knows is proof.
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

# What a worker says of an image that is in its table, though there is no file to give: none was
# kept, it is not written yet, or it is stored elsewhere.
_KNOWS_IMAGE = ("Image was not persisted", "Image is still being", "Image has been uploaded")

CONNECT_TIMEOUT = 5.0  # seconds
# A machine that loses its power sends no end of file, and one behind a broken network cannot. So
# the kernel asks it, and whoever is reached again without knowing the connection says so. Long
# patience (ten minutes) costs nothing: a network that fails is no restart. Seconds, and a count.
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 120}
_CHALLENGE = {"TCP_KEEPIDLE": 1, "TCP_KEEPINTVL": 1}
_CHALLENGED = 1.5  # seconds until the answer is here
# So many ends in a row that meant nothing, and they say nothing any more.
_MOST_VAIN = 3
# Ends that come as regularly as this are no deaths of processes: a share of the time that the
# connection lasted, and seconds.
_ALIKE, _ALIKE_AT_LEAST = 0.1, 0.5
_MUCH_LONGER, _MUCH_LONGER_AT_LEAST = 2.0, 1.0


class Verdict(StrEnum):
    """What is known of the process behind a URL, against the one that was there before."""

    SAME = "same"
    OTHER = "other"
    UNKNOWN = "unknown"  # nothing tells
    SILENT = "silent"  # there was no answer: ask again


Prover: TypeAlias = Callable[[Worker], Awaitable[Verdict]]
"""Says whether the process is the one of the worker's present incarnation; must not raise."""


def trusts_absence(absence: float | None, trust_downtime: float) -> bool:
    """Whether restored workers are taken to be the same without proof (`--trust-downtime`).

    `absence`: seconds for which no router ran; None if that is not known, and then they are not.
    """
    return absence is not None and 0 <= absence < trust_downtime


@define(eq=False)
class ProcessIdentity:
    """Finds out whether a worker's process is still the one that was known."""

    assets: AssetMap
    client: ControlClient
    provers: list[Prover] = field(factory=list)  # asked in this order, before the worker itself

    def recall(self, worker: Worker) -> tuple[Made, ...]:
        """What the known process has made, as far as it can testify.

        To be called in the moment of the suspicion: what is made later may be of another process.
        """
        return self.assets.latest(worker)

    async def judge(self, worker: Worker, recalled: Iterable[Made]) -> Verdict:
        """Whether the process is the one that made these."""
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
        """Whether the worker knows what it made; None if its answer does not tell. Raises
        Unreachable."""
        path = f"/v1/{made.owner.kind}/{segment(made.asset_id)}"
        if made.owner.kind is AssetKind.IMAGE:
            path += "/content"
            # Megabytes would follow.
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
            # Something in between may answer anything with 200.
            return True if said.get("id") == made.asset_id else None
        return False if answer.status == 404 else None


@define
class Evidence:
    """Whether the end of a worker's idle connection says that its process has ended.

    Something in between (a proxy, a tunnel) may end it again and again though the process goes on.
    Then it is no evidence, until a connection lasts much longer than the ones before.
    """

    # Seconds that the last connections lasted; their ends meant nothing.
    _vain: list[float] = field(init=False, factory=list)
    # Seconds that the connection lasted whose end is not explained yet.
    _open: float | None = field(init=False, default=None)

    @property
    def counts(self) -> bool:
        return len(self._vain) < _MOST_VAIN

    def ended(self, lasted: float) -> bool:
        """The connection has ended after so many seconds; whether that is evidence."""
        if not self.counts:
            usual = max(self._vain)
            if lasted > max(_MUCH_LONGER * usual, usual + _MUCH_LONGER_AT_LEAST):
                self._vain.clear()
        self._open = lasted
        return self.counts

    def take(self) -> float | None:
        """How long the connection lasted whose end is to be explained now, if there is one."""
        lasted, self._open = self._open, None
        return lasted

    def was_vain(self, lasted: float, *, proven: bool) -> None:
        """The worker was well at once after that end; `proven`: and its process is the same.
        What cannot be proven is believed where the ends are regular."""
        if not proven:
            if not self.counts:
                return
            if self._vain and abs(lasted - self._vain[-1]) > max(_ALIKE_AT_LEAST, _ALIKE * lasted):
                self._vain.clear()
        self._vain = [*self._vain, lasted][-_MOST_VAIN:]

    def was_true(self) -> None:
        """The process has ended, or the worker could not be reached for a while."""
        self._vain.clear()


async def open_idle(url: str, addresses: Addresses, trust: Trust) -> trio.abc.Stream | None:
    """Open the idle connection, to where the URL leads now. None if that fails: the probe beside it
    finds out why. Raises Unresolved."""
    origin = Origin.of(url)
    stream: trio.abc.Stream | None = None
    opened = False
    try:
        with trio.move_on_after(CONNECT_TIMEOUT):
            stream = plain = await addresses.meet(origin)
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            _set(plain, _KEEPALIVE)
            if origin.scheme == "https":
                # Without a handshake the worker would close it as a stalled client.
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
    """Let the kernel ask the other side whether it still has the connection, and wait for the
    answer: if it has not, the connection has ended by then."""
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
    """Wait until the worker ends the idle connection; says how, and closes our side."""
    try:
        data = await stream.receive_some(1)
        return "it sent bytes that nobody asked for" if data else "its idle connection was closed"
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return "its idle connection was reset"
    finally:
        await trio.aclose_forcefully(stream)
