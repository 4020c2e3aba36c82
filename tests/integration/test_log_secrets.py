"""Prompts, keys, passwords and queries reach no log, whatever becomes of a request."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
import trio
from attrs import define

from router.observe import logs
from router.relay import asgi
from tests.integration.relay.harness import Client, Peer, Routed, routed, run, until
from tests.integration.relay.wire import request, response

PROMPT, KEY, PASSWORD, QUERY = "an-otter-in-the-rain", "sk-key-1", "hunter2", "token-in-query"
SECRETS = (PROMPT, KEY, PASSWORD, QUERY)
IMAGES = "/v1/images/generations"
HEADERS = (
    "Content-Type: application/json",
    f"Authorization: Bearer {KEY}",
    f"X-API-Key: {KEY}",
    f"Cookie: session={KEY}",
)
UPGRADE = (
    *("Upgrade: websocket", "Connection: Upgrade", f"Authorization: Bearer {KEY}"),
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
)
ADMIN = "Authorization: Bearer admin-secret"


@define
class Logs:
    """What the log says in both formats."""

    text: io.StringIO
    json: io.StringIO

    def objects(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.json.getvalue().splitlines()]

    def check(self, *secrets: str) -> None:
        for said in (self.text.getvalue(), self.json.getvalue()):
            for secret in secrets:
                at = said.find(secret)
                assert at < 0, said[max(0, at - 500) : at + 200]


@pytest.fixture
def told() -> Iterator[Logs]:
    found = Logs(io.StringIO(), io.StringIO())
    handlers = [logging.StreamHandler(found.text), logging.StreamHandler(found.json)]
    handlers[0].setFormatter(logs._LineFormatter(coloured=False))
    handlers[1].setFormatter(logs.JsonFormatter())
    root, own = logging.getLogger(), logging.getLogger("router")
    before = own.level
    own.setLevel(logging.DEBUG)
    root.handlers += handlers
    yield found
    for handler in handlers:
        root.handlers.remove(handler)
    own.setLevel(before)


def generation(act: str, *headers: str, target: str = IMAGES, **more: object) -> bytes:
    body = json.dumps({"model": "model", "prompt": PROMPT, "act": act, **more}).encode()
    return request("POST", f"{target}?key={QUERY}", *HEADERS, *headers, body=body)


async def worker(peer: Peer) -> None:
    """Does what the body asks for. Its words repeat the prompt and the key."""
    message = await peer.request()
    act = str(message.json().get("act")) if message.body else "websocket"
    words = f"cannot draw {PROMPT} for {KEY}".encode()
    match act:
        case "serve":
            await peer.send(response(200, f"Set-Cookie: session={KEY}", body=words))
        case "fail":
            await peer.send(response(500, body=words))
        case "refuse":
            await peer.send(response(400, body=words))
        case "babble":
            await peer.send(b"%b\r\n%b\r\n\r\n" % (words, words))
        case "header":
            await peer.send(b"HTTP/1.1 200 OK\r\n%b : x\r\n\r\n" % words)
        case "chunks":
            await peer.send(response(200, "Transfer-Encoding: chunked", body=words))
        case "cut":
            await peer.send(response(200, "Content-Length: 1000", body=words))
        case "websocket":
            await peer.send(response(403, body=words))
        case "wait":
            await trio.sleep_forever()


BROKEN = [
    b"GET /x?key=%b HTTP/9\r\n\r\n",
    b"GET /x?key=%b nonsense HTTP/1.1\r\n\r\n",
    b"GET /x HTTP/1.1\r\nHost: a\r\nX-API-Key : %b\r\n\r\n",
    b"GET /x HTTP/1.1\r\nHost: a\r\nX-API-Key: %b\r\n it's %b\r\n\x00: 1\r\n\r\n",
    b"GET /x HTTP/1.1\r\nHost: u:%b@h/\r\n\r\n",
    b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: %b\r\n\r\n",
    b"POST /v1/images/generations HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n%b\r\n",
    b"%b\r\n\r\n",
]


async def leave(router: Routed, data: bytes, *, part: bool) -> None:
    """Send a request, or a part of it, and go."""
    client: Client = await router.client()
    open_ = router.worker.open
    await client.send(data[:-5] if part else data)
    if not part:
        await until(lambda: router.worker.open > open_, "the request at the worker")
    client.reset()


async def all_ways(router: Routed) -> None:
    for act in ("serve", "fail", "refuse", "babble", "header", "chunks", "cut"):
        await router.ask(generation(act))
    await leave(router, generation("wait"), part=False)
    await leave(router, generation("serve"), part=True)
    few = {"num_outputs_per_prompt": PROMPT}
    await router.ask(generation("serve", model="nobody"))
    await router.ask(generation("serve", "X-Split: perhaps", target="/rollout/generate"))
    await router.ask(generation("serve", "X-Split: true", target="/rollout/generate", **few))
    await router.ask(generation("serve", "Idempotency-Key: a"))
    await router.ask(generation("refuse", "Idempotency-Key: a"))
    await router.ask(generation("serve", "X-Group-Id: \u00e4"))
    await router.ask(generation("serve", padding="x" * 3000))  # too large
    for data in BROKEN:
        client = await router.client()
        await client.send(data.replace(b"%b", f"{KEY}{PASSWORD}".encode()))
        client.close()
    for version in ("13", "12"):
        handshake = (*UPGRADE, f"Sec-WebSocket-Version: {version}")
        await router.ask(request("GET", f"/v1/realtime_video?token={QUERY}", *handshake))
    url = f"http://user:{PASSWORD}@127.0.0.1:1"
    quoted = f"http%3A%2F%2Fuser:{PASSWORD}%40127.0.0.1:1"
    as_json = "Content-Type: application/json"
    await router.ask(request("POST", f"/workers?url={url}", ADMIN))
    await router.ask(
        request("POST", "/workers", ADMIN, as_json, body=f'{{"url": "{url}"}}'.encode())
    )
    await router.ask(request("POST", "/workers", ADMIN, as_json, body=f'{{"{KEY}'.encode()))
    await router.ask(request("DELETE", f"/workers/{quoted}", ADMIN))
    await router.ask(request("GET", f"http://user:{PASSWORD}@h/v1/models?key={QUERY}"))
    await router.ask(request("DELETE", f"/workers/a?key={QUERY}", f"Authorization: Bearer {KEY}"))
    await router.ask(request("PATCH", f"/workers?key={QUERY}", ADMIN))
    await router.ask(generation("serve", target="/v1/set_lora"))
    await router.ask(generation("serve", target="/load_lora_adapter"))


@pytest.mark.parametrize("prompts", [False, True])
def test_secrets_reach_no_log(told: Logs, prompts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    async def crashing(*_: object) -> None:
        raise ZeroDivisionError("the router has a bug")

    async def main() -> None:
        async with routed(
            worker,
            admin_api_key="admin-secret",
            max_request_bytes=2000,
            access_log="on",
            strict_model=True,
            log_prompts=prompts,
            retries=0,
            ejection_failures=None,
        ) as router:
            await all_ways(router)
            router.worker.refuse()
            await router.ask(generation("serve"))
            monkeypatch.setattr(asgi.Relay, "_relay", crashing)
            await router.ask(generation("serve"))
            await router.settled()

    run(main)
    told.check(*(set(SECRETS) - ({PROMPT} if prompts else set())), "admin-secret")
    lines = told.objects()
    codes = {line.get("code") for line in lines}
    assert codes >= {
        *("worker_cut_off", "client_gone", "unknown_model", "request_too_large", "bad_request"),
        *("cannot_split", "invalid_header", "bad_worker_url", "internal_error"),
        *("method_not_allowed", "idempotency_mismatch"),
    }
    served = [line for line in lines if line.get("event") == "exchange"]
    assert len(served) > 30
    assert {line.get("status") for line in served} >= {200, 403, 413, 426, 500, 502, None}
    assert all(line["request_id"] for line in served)
    with_prompt = [line for line in served if line.get("prompt") == PROMPT]
    assert bool(with_prompt) is prompts


def test_lines_of_a_request_have_its_id(told: Logs) -> None:
    async def main() -> None:
        async with routed(worker, worker, retries=0, ejection_failures=None) as router:
            for act in ("babble", "serve"):
                await router.ask(generation(act, f"X-Request-Id: the-{act}"))
            quoted = router.workers[0].url.replace("/", "%2F")
            body = b'{"is_dead": true}'
            await router.ask(request("PUT", f"/workers/{quoted}", "X-Request-Id: put", body=body))

    run(main)
    by_id: dict[object, list[object]] = {}
    for line in told.objects():
        by_id.setdefault(line.get("request_id"), []).append(line["message"])
    assert any("502" in str(said) for said in by_id["the-babble"])
    assert any("lease granted" in str(said) for said in by_id["the-babble"])
    assert any("lease granted" in str(said) for said in by_id["the-serve"])
    assert any("quarantined" in str(said) for said in by_id["put"])
    assert not [said for said in by_id[None] if "lease" in str(said)]
    assert [said for said in by_id[None] if "healthy" in str(said)]
