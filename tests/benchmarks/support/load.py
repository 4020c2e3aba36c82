"""The clients: wrk, or plain sockets. All raise on anything but a whole, successful answer."""

from __future__ import annotations

import contextlib
import json
import selectors
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from attrs import define, frozen

from support.upstream import MODEL

WRK = shutil.which("wrk")
BODY = json.dumps({"model": MODEL, "prompt": "a red cube", "size": "1024x1024", "seed": 1})
TINY_PATH = "/v1/images/generations"
PATIENCE = 60.0  # seconds that a socket may stand still
_SCRATCH = bytearray(1024 * 1024)  # where bodies end

_WRK_SCRIPT = f"""
wrk.method = "POST"
wrk.body = '{BODY}'
wrk.headers["Content-Type"] = "application/json"
function done(summary, latency, requests)
    local e = summary.errors
    local form = '{{"requests": %d, "us": %d, "p50": %d, "p99": %d, "refused": %d, "broken": %d}}'
    io.stderr:write(string.format(form, summary.requests, summary.duration,
        latency:percentile(50), latency:percentile(99),
        e.status, e.connect + e.read + e.write + e.timeout))
end
"""


@frozen
class Rate:
    """Requests per second, and how long one took in milliseconds."""

    requests: int
    per_second: float
    p50: float
    p99: float


def tiny(
    port: int, *, connections: int, seconds: float, folder: Path, path: str = TINY_PATH
) -> Rate:
    """Tiny POSTs, one after the other on each of the connections."""
    if WRK is None:
        return _tiny_by_sockets(port, connections, seconds, path)
    script = folder / "tiny.lua"
    script.write_text(_WRK_SCRIPT, encoding="utf-8")
    done = subprocess.run(
        [
            WRK, "--threads", "1", "--connections", str(connections),
            "--duration", f"{max(1, round(seconds))}s", "--script", str(script), "--timeout", "30s",
            f"http://127.0.0.1:{port}{path}",
        ],
        capture_output=True, text=True, check=True, timeout=seconds + 60,
    )  # fmt: skip
    said = json.loads(done.stderr)
    # Stock hypercorn ends connections after 1,000 requests, which can cost read errors.
    if not said["requests"] or said["refused"] or said["broken"] > said["requests"] / 100:
        raise RuntimeError(f"wrk: {said}")
    per_second = said["requests"] / said["us"] * 1e6
    return Rate(said["requests"], per_second, said["p50"] / 1e3, said["p99"] / 1e3)


class _Asker:
    """One connection that asks again and again. All answers of a server are of one length."""

    def __init__(self, port: int, path: str) -> None:
        self._request = request_head("POST", path, len(BODY)) + BODY.encode()
        self.sock = connect(port)
        self.sock.sendall(self._request)
        response = Response.read_head(self.sock)
        response.skip_body(self.sock)
        self._length = response.head_length + response.length
        self._got = 0
        self._asked = 0.0

    def ask(self) -> None:
        self._got = 0
        self._asked = time.perf_counter()
        self.sock.sendall(self._request)

    def hear(self) -> float | None:
        """Take what came: how long the answer took if that was the last of it, else None."""
        data = self.sock.recv(65536)
        if not data:
            raise ConnectionError
        if not self._got and not data.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"unexpected answer: {data[:500]!r}")
        self._got += len(data)
        return time.perf_counter() - self._asked if self._got >= self._length else None


def _tiny_by_sockets(port: int, connections: int, seconds: float, path: str) -> Rate:
    took: list[float] = []
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as opened:

        def connected() -> _Asker:
            asker = _Asker(port, path)
            opened.callback(asker.sock.close)
            selector.register(asker.sock, selectors.EVENT_READ, asker)
            return asker

        askers = [connected() for _ in range(connections)]
        start = time.perf_counter()
        for asker in askers:
            asker.ask()
        while (elapsed := time.perf_counter() - start) < seconds:
            for key, _ in selector.select(1):
                asker = key.data
                try:
                    latency = asker.hear()
                except ConnectionError:  # stock hypercorn ends connections after 1,000 requests
                    selector.unregister(asker.sock)
                    asker.sock.close()
                    connected().ask()
                    continue
                if latency is not None:
                    took.append(latency)
                    asker.ask()
    if not took:
        raise RuntimeError(f"no answer within {seconds:g} s")
    took.sort()
    p50, p99 = (took[int(len(took) * share)] * 1e3 for share in (0.5, 0.99))
    return Rate(len(took), len(took) / elapsed, p50, p99)


def request_head(method: str, path: str, length: int | None = None) -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
    if length is not None:
        head += f"Content-Length: {length}\r\n"
    return (head + "\r\n").encode()


def connect(port: int, *, receive_buffer: int | None = None) -> socket.socket:
    sock = socket.socket()
    try:
        sock.settimeout(PATIENCE)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.connect(("127.0.0.1", port))
    except BaseException:
        sock.close()
        raise
    return sock


@define
class Response:
    """The answer to one request, framed by Content-Length."""

    head_length: int
    length: int
    got: int  # bytes of the body so far

    @classmethod
    def read_head(cls, sock: socket.socket) -> Response:
        data = b""
        while b"\r\n\r\n" not in data:
            received = sock.recv(65536)
            if not received:
                raise ConnectionError("no answer")
            data += received
        head, _, rest = data.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"unexpected answer: {data[:500]!r}")
        for line in head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                return cls(len(head) + 4, int(value), len(rest))
        raise RuntimeError(f"an answer without Content-Length: {head!r}")

    def receive(self, sock: socket.socket, most: int = len(_SCRATCH)) -> bool:
        """Take what is there; False at the end of the body."""
        if self.got < self.length:
            count = sock.recv_into(_SCRATCH, min(most, self.length - self.got))
            if not count:
                raise ConnectionError(f"cut off after {self.got} of {self.length} bytes")
            self.got += count
        return self.got < self.length

    def skip_body(self, sock: socket.socket) -> None:
        while self.receive(sock):
            pass


def fetch(sock: socket.socket, path: str) -> int:
    """One whole GET on a connection that stays open; the size of the answer's body."""
    sock.sendall(request_head("GET", path))
    response = Response.read_head(sock)
    response.skip_body(sock)
    return response.length


def download(port: int, path: str, *, times: int) -> float:
    """Whole GETs one after the other on one connection; GB/s."""
    with connect(port) as sock:
        start = time.perf_counter()
        total = sum(fetch(sock, path) for _ in range(times))
        return total / (time.perf_counter() - start) / 1e9


def download_parallel(port: int, path: str, *, connections: int, seconds: float | None) -> float:
    """GETs on each of the connections for that long, or one on each (None); GB/s."""
    request = request_head("GET", path)
    total = 0
    with contextlib.ExitStack() as opened, selectors.DefaultSelector() as selector:
        start = time.perf_counter()
        socks = [opened.enter_context(connect(port)) for _ in range(connections)]
        for sock in socks:
            sock.sendall(request)
            selector.register(sock, selectors.EVENT_READ)
        while selector.get_map() and (seconds is None or time.perf_counter() < start + seconds):
            for key, _ in _select(selector):
                if key.data is None:
                    response = Response.read_head(key.fileobj)  # type: ignore[arg-type]
                    total += response.got
                    selector.modify(key.fileobj, selectors.EVENT_READ, response)
                    continue
                before = key.data.got
                more = key.data.receive(key.fileobj)
                total += key.data.got - before
                if not more and seconds is None:
                    selector.unregister(key.fileobj)
                elif not more:
                    key.fileobj.sendall(request)  # type: ignore[union-attr]
                    selector.modify(key.fileobj, selectors.EVENT_READ, None)
        return total / (time.perf_counter() - start) / 1e9


def read_slowly(port: int, path: str, *, connections: int, rate: float, seconds: float) -> None:
    """Downloads that each take at most `rate` bytes per second; given up after `seconds`."""
    step = 0.05
    with contextlib.ExitStack() as opened:
        readers = []
        for _ in range(connections):
            sock = opened.enter_context(connect(port, receive_buffer=256 * 1024))
            sock.sendall(request_head("GET", path))
            readers.append((sock, Response.read_head(sock)))
        start = time.perf_counter()
        while readers and (now := time.perf_counter()) < start + seconds:
            allowed = rate * (now - start + step)
            for sock, response in list(readers):
                sock.settimeout(PATIENCE)
                while response.got < allowed:
                    if not response.receive(sock, 256 * 1024):
                        readers.remove((sock, response))
                        break
            time.sleep(step)


def upload(port: int, path: str, size: int, *, times: int) -> float:
    """Whole POSTs one after the other on one connection; GB/s until the answers are there."""
    piece = memoryview(_SCRATCH)
    with connect(port) as sock:
        start = time.perf_counter()
        for _ in range(times):
            sock.sendall(request_head("POST", path, size))
            left = size
            while left:
                left -= sock.send(piece[: min(left, len(piece))])
            Response.read_head(sock).skip_body(sock)
        return size * times / (time.perf_counter() - start) / 1e9


@contextlib.contextmanager
def stalled_reader(port: int, path: str) -> Iterator[None]:
    """Somebody who asks for a body and takes nothing of it."""
    with connect(port) as sock:
        sock.sendall(request_head("GET", path))
        yield


def stalled_upload(port: int, path: str, size: int, *, seconds: float) -> int:
    """An upload to somebody who reads nothing; how many bytes left until all stood still."""
    piece = memoryview(_SCRATCH)
    sent = 0
    with connect(port) as sock:
        sock.sendall(request_head("POST", path, size))
        sock.settimeout(seconds)
        try:
            while sent < size:
                sent += sock.send(piece[: min(size - sent, len(piece))])
        except TimeoutError:
            pass
    return sent


@contextlib.contextmanager
def idle_clients(port: int, count: int) -> Iterator[None]:
    """Clients that have each had one answer and keep their connection."""
    request = request_head("POST", TINY_PATH, len(BODY)) + BODY.encode()
    with contextlib.ExitStack() as opened:
        for _ in range(count):
            sock = opened.enter_context(connect(port))
            sock.sendall(request)
            Response.read_head(sock).skip_body(sock)
        yield


def _select(selector: selectors.BaseSelector) -> list[tuple[selectors.SelectorKey, int]]:
    ready = selector.select(PATIENCE)
    if not ready:
        raise TimeoutError("nothing came")
    return ready
