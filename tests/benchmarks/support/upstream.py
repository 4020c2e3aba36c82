"""A small worker for the benchmarks: plain sockets and epoll, so that it is no bottleneck.

Answers what the router asks of a worker, a tiny JSON to a POST once its body has come, and
`GET /bodies/N` with N bytes. `POST /stall` is never read beyond its head.

Run as a script: `upstream.py PORT [COUNT]`; COUNT workers are on as many loopback addresses.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import selectors
import socket
import sys

MODEL = "bench"
TINY = json.dumps(
    {"created": 1, "data": [{"url": "/v1/images/1/content"}], "id": "1" * 32}
).encode()
# What a worker says of itself. Many slots: the relay is measured, not the waiting for a worker.
SELF = {
    "/health": {"status": "ok"},
    "/v1/models": {
        "object": "list",
        "data": [{"id": MODEL, "object": "model", "supported_task_types": ["T2I", "T2V"]}],
    },
    "/server_info": {"model_path": MODEL, "served_model_name": MODEL, "dp_size": 1024},
    "/model_info": {"model_path": MODEL, "task_type": "T2I", "supported_task_types": ["T2I"]},
}

_PIECE = memoryview(bytes(range(256)) * 4096)  # 1 MiB
_SCRATCH = bytearray(1024 * 1024)


_ids = itertools.count(1)


def _video(method: str, target: str) -> object:
    """A job, which is over at once; the list of jobs is empty."""
    if method == "POST":
        return {"id": f"{next(_ids):032d}", "object": "video", "status": "completed"}
    if target.startswith("/v1/videos/"):
        return {"id": target.rpartition("/")[2], "object": "video", "status": "completed"}
    return {"object": "list", "data": [], "has_more": False}


class _Client:
    """One connection. Requests are not pipelined."""

    def __init__(self, sock: socket.socket, selector: selectors.BaseSelector) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.selector = selector
        self.head = b""
        self.unread = 0  # bytes of the request body still to come
        self.answer: list[bytes] = []  # sent when the body has come
        self.unsent = 0  # bytes of the answer's body after it
        selector.register(sock, selectors.EVENT_READ, self)

    def readable(self) -> None:
        if self.unread:
            self._took(self.sock.recv_into(_SCRATCH))
            return
        data = self.sock.recv(65536)
        if not data:
            raise ConnectionError
        self.head += data
        head, found, rest = self.head.partition(b"\r\n\r\n")
        if found:
            self.head = b""
            self._begin(head, len(rest))

    def _begin(self, head: bytes, early: int) -> None:
        lines = head.split(b"\r\n")
        method, target, _ = lines[0].decode().split(" ", 2)
        length = 0
        for line in lines[1:]:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        if target == "/stall":
            self.selector.unregister(self.sock)
            return
        self.unread = length
        if target.startswith("/bodies/"):
            size = int(target.rpartition("/")[2])
            self.answer = [_head(size, b"application/octet-stream")]
            self.unsent = size if method == "GET" else 0
        elif target.startswith("/v1/videos"):
            body = json.dumps(_video(method, target)).encode()
            self.answer = [_head(len(body), b"application/json") + body]
        else:
            body = json.dumps(SELF[target]).encode() if target in SELF else TINY
            self.answer = [_head(len(body), b"application/json") + body]
        if length:
            if early:
                self._took(early)
        else:
            self._respond()

    def _took(self, count: int) -> None:
        if not count:
            raise ConnectionError
        self.unread -= count
        if not self.unread:
            self._respond()

    def _respond(self) -> None:
        self.sock.sendall(b"".join(self.answer))
        self.answer = []
        if self.unsent:
            self.selector.modify(self.sock, selectors.EVENT_WRITE, self)

    def writable(self) -> None:
        self.unsent -= self.sock.send(_PIECE[: min(self.unsent, len(_PIECE))])
        if not self.unsent:
            self.selector.modify(self.sock, selectors.EVENT_READ, self)


def _head(length: int, kind: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n" % (kind, length)


def host_of(number: int) -> str:
    """The loopback address of the nth worker."""
    return f"127.0.{number // 250}.{number % 250 + 1}"


def main(port: int, count: int = 1) -> None:
    selector = selectors.DefaultSelector()
    with contextlib.ExitStack() as opened:
        for number in range(count):
            address = (host_of(number), port)
            listener = opened.enter_context(socket.create_server(address, backlog=1024))
            selector.register(listener, selectors.EVENT_READ)
        while True:
            for key, events in selector.select():
                client: _Client | None = key.data
                if client is None:
                    assert isinstance(key.fileobj, socket.socket)
                    _Client(key.fileobj.accept()[0], selector)
                    continue
                try:
                    if events & selectors.EVENT_READ:
                        client.readable()
                    else:
                        client.writable()
                except BlockingIOError:
                    pass
                except OSError:
                    selector.unregister(client.sock)
                    client.sock.close()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
