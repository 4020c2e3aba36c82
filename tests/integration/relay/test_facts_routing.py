"""Requests find the worker of their model by as little of the body as it takes."""

from __future__ import annotations

import json

import pytest
import trio

from tests.integration.relay.harness import Peer, ScriptedWorker, answering, listen, routed, run
from tests.integration.relay.wire import LAST_CHUNK, SOON, Message, chunked, request, response

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


def test_a_model_that_is_not_found_is_not_guessed() -> None:
    async def main() -> None:
        seen: list[tuple[str, Message]] = []
        async with routed(*await two_models(seen)) as router:
            body = form(("prompt", "p"), after=("model", "two"))
            data = request("POST", "/v1/images/edits", FORM, body=body)
            for _ in range(2):
                answer = await router.ask(data)
                assert (answer.status, json.loads(answer.body)["code"]) == (400, "ambiguous_model")
            assert not seen

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
            with trio.fail_after(SOON):
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
