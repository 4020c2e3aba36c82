"""Requests find the worker of their model by as little of the body as it takes."""

from __future__ import annotations

import json
from tempfile import TemporaryFile
from typing import IO, Any

import pytest
import trio

from router.relay.spool import Room
from tests.integration.relay.harness import (
    Peer,
    ScriptedWorker,
    answering,
    failing,
    listen,
    routed,
    run,
    until,
)
from tests.integration.relay.wire import LAST_CHUNK, SOON, Message, chunked, request, response
from tests.patience import fail_after

FORM = "Content-Type: multipart/form-data; boundary=x"
JSON = "Content-Type: application/json"
SIZE = 3_000_000


def form(*before: tuple[str, str], after: tuple[str, str] | None = None) -> bytes:
    def field(name: str, value: str) -> str:
        return f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'

    begin = "".join(field(*pair) for pair in before)
    begin += '--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    end = "\r\n" + (field(*after) if after else "") + "--x--\r\n"
    return begin.encode() + b"\x89PNG" * (SIZE // 4) + end.encode()


async def two_models(seen: list[tuple[str, Message]]) -> list[ScriptedWorker]:
    def script(model: str) -> ScriptedWorker:
        async def serve(peer: Peer) -> None:
            while True:
                seen.append((model, await peer.request()))
                await peer.send(response(body=model.encode()))

        return serve  # type: ignore[return-value]

    return [
        ScriptedWorker(script(model), await listen(), model=model)  # type: ignore[arg-type]
        for model in ("one", "two")
    ]


@pytest.mark.parametrize("how", ["length", "chunked"])
@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (JSON, json.dumps({"prompt": "p", "model": "two"}).encode()),
        (JSON, json.dumps({"x": {"model": "one"}, "model": "two", "image": "x" * SIZE}).encode()),
        (FORM, form(("prompt", "p"), ("model", "two"))),
    ],
    ids=["small", "large", "form"],
)
def test_the_model_chooses_the_worker(kind: str, body: bytes, how: str) -> None:
    async def main() -> None:
        seen: list[tuple[str, Message]] = []
        async with routed(*await two_models(seen)) as router:
            for _ in range(3):
                if how == "length":
                    data = request("POST", "/v1/images/edits", kind, body=body)
                else:
                    data = request("POST", "/v1/images/edits", kind, "Transfer-Encoding: chunked")
                    data += chunked(body) + LAST_CHUNK
                assert (await router.ask(data)).body == b"two"
            assert [(model, message.body == body) for model, message in seen] == [("two", True)] * 3

    run(main)


LONG = json.dumps({"image": "x" * SIZE, "n": [[1], {"model": "one"}], "model": "two"}).encode()


@pytest.mark.parametrize("how", ["length", "chunked"])
@pytest.mark.parametrize("peek", [1, 100_000, 2 * SIZE])
@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (FORM, form(after=("model", "two"))),
        (JSON, LONG),
        (FORM, form(after=("model", "two")).replace(b"\x89PNG" * (SIZE // 4), b"PNG")),
    ],
    ids=["form", "json", "small form"],
)
def test_a_model_behind_a_file_or_a_long_string_is_found(
    kind: str, body: bytes, how: str, peek: int
) -> None:
    async def main() -> None:
        seen: list[tuple[str, Message]] = []
        rest = b"" if kind == FORM else b" " * SIZE  # is not waited for
        async with routed(*await two_models(seen), peek_limit=peek) as router:
            for more in (b"", rest):
                if how == "length":
                    data = request("POST", "/v1/images/edits", kind, body=body + more)
                else:
                    data = request("POST", "/v1/images/edits", kind, "Transfer-Encoding: chunked")
                    data += chunked(body) + (chunked(more) if more else b"") + LAST_CHUNK
                assert (await router.ask(data)).body == b"two"
                model, message = seen.pop()
                assert (model, message.body == body + more, seen) == ("two", True, [])
                length = message["content-length"]
                assert length is None or int(length) == len(body + more)

    run(main)


@pytest.mark.parametrize("body", [form(("prompt", "p")), LONG[:-10] + b"}"], ids=["form", "json"])
@pytest.mark.parametrize("limit", [500_000, 10 * SIZE])
def test_a_model_that_is_not_found_is_not_guessed(body: bytes, limit: int) -> None:
    async def main() -> None:
        seen: list[tuple[str, Message]] = []
        kind = FORM if body[:1] == b"-" else JSON
        models = await two_models(seen)
        async with routed(*models, peek_limit=1000, facts_limit=limit) as router:
            data = request("POST", "/v1/images/edits", kind, body=body)
            answer = await router.ask(data)
            assert (answer.status, json.loads(answer.body)["code"]) == (400, "ambiguous_model")
            assert not seen

    run(main)


@pytest.mark.parametrize("peek", [1000, 2 * SIZE])
def test_what_waits_in_a_file_can_be_sent_again(peek: int) -> None:
    async def main() -> None:
        seen: list[Message] = []
        scripts = [
            (failing(reads="head", ends="reset", record=None), "two"),
            (answering(response(body=b"ok"), record=seen), "two"),
            (answering(response(body=b"wrong")), "one"),
        ]
        workers = [ScriptedWorker(script, await listen(), model=m) for script, m in scripts]
        async with routed(*workers, peek_limit=peek) as router:
            for _ in range(2):
                body = form(after=("model", "two"))
                data = request("POST", "/v1/images/edits", FORM, body=body)
                assert (await router.ask(data)).body == b"ok"
                assert seen.pop().body == body
            assert workers[0].connections >= 1

    run(main)


def test_the_files_of_all_requests_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is room again once a body was sent, or its client has left."""
    rooms: list[Room] = []

    def make(size: int) -> Room:
        rooms.append(Room(size))
        return rooms[-1]

    monkeypatch.setattr("router.relay.forward.Room", make)

    async def main() -> None:
        seen: list[tuple[str, Message]] = []
        body = form(after=("model", "two"))
        sent = request("POST", "/v1/images/edits", FORM, body=body)
        most = len(body) + 100_000
        async with routed(*await two_models(seen), peek_limit=1000, queue_bytes=most) as router:
            [room] = rooms
            for _ in range(3):
                assert (await router.ask(sent)).body == b"two"
            stalled = await router.client()
            await stalled.send(sent[: len(sent) // 2])
            await until(lambda: room.taken > 1_000_000, "half of it in a file")
            refused = await router.ask(sent)
            assert (refused.status, refused.json()["code"]) == (503, "queue_full")
            assert refused["retry-after"] is not None
            stalled.close()
            await until(lambda: not room.taken, "its end")
            assert (await router.ask(sent)).body == b"two"
            assert room.taken == 0

    run(main)


@pytest.mark.parametrize("answered", [False, True])
def test_no_file_is_left(monkeypatch: pytest.MonkeyPatch, answered: bool) -> None:
    files: list[IO[bytes]] = []

    def make(**options: Any) -> IO[bytes]:
        files.append(TemporaryFile(**options))  # noqa: SIM115 - the router closes it
        return files[-1]

    monkeypatch.setattr("tempfile.TemporaryFile", make)
    body = form(after=("model", "two"))

    async def main() -> None:
        seen: list[tuple[str, Message]] = []
        async with routed(*await two_models(seen), peek_limit=1000) as router:
            client = await router.client()
            head = request("POST", "/v1/images/edits", FORM, f"Content-Length: {len(body)}")
            await client.send(head + (body if answered else body[:-100]))
            if answered:
                assert (await client.answer()).status == 200
            await until(lambda: bool(files), "a file")
            client.close()
        assert len(files) == 1
        assert files[0].closed

    run(main)


@pytest.mark.parametrize(
    ("kind", "begin"),
    [
        (JSON, b'{"prompt": "p", "model": "two", '),
        (FORM, form(("model", "two"))[:200]),
        (FORM, form()[:100]),
        ("Content-Type: video/mp4", b"\x00"),
    ],
    ids=["json", "form", "form without", "file"],
)
def test_a_trickling_upload_begins_at_the_worker_as_soon_as_the_facts_are_there(
    kind: str, begin: bytes
) -> None:
    async def main() -> None:
        begun = trio.Event()

        async def script(peer: Peer) -> None:
            message = await peer.head()
            await peer.exactly(len(begin), message)
            assert message.body == begin
            begun.set()
            await peer.ended()

        async with routed(script) as router:
            client = await router.client()
            path = "/v1/images/edits"
            await client.send(request("POST", path, kind, f"Content-Length: {SIZE}") + begin)
            with fail_after(SOON):
                await begun.wait()

    run(main)


def test_a_small_body_that_trickles_holds_no_worker() -> None:
    async def main() -> None:
        async with routed(answering(response())) as router:
            granted: list[object] = []
            router.running.parts.registry.subscribe(granted.append)
            client = await router.client()
            await client.send(request("POST", "/x", JSON, "Content-Length: 20") + b'{"model": "m"')
            await trio.sleep(0.03)
            assert granted == []
            await client.send(b", 'x':1")
            assert (await client.answer()).status == 200

    run(main)
