"""Workers that answer what no worker should: the router goes on, and so do the others."""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from router import boundary
from router.control import watch as watch_module
from router.pool.worker import Worker
from tests.integration.deployment import (
    Deployment,
    RunRouter,
    ScriptedWorker,
    answer,
    deployed,
    run,
    until,
)
from tests.integration.lives import Lives, run_lives

DEEP = b"[" * 100_000 + b"]" * 100_000
HUGE = b"9" * 4000
CARD = b'{"id": "m", "task_type": "T2V"}'


async def endless(stream: trio.SocketStream) -> None:
    """An answer whose head never ends."""
    await stream.send_all(b"HTTP/1.1 200 X\r\n")
    while True:
        await stream.send_all(b"x-more: %s\r\n" % (b"y" * 1000))


async def interim(stream: trio.SocketStream) -> None:
    """Interim answers without end."""
    while True:
        await stream.send_all(b"HTTP/1.1 102 X\r\n\r\n" * 100)


async def endless_body(stream: trio.SocketStream) -> None:
    await stream.send_all(b"HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        await stream.send_all(b"10000\r\n%s\r\n" % (b" " * 65536))


def raw(head: bytes, body: bytes = b"{}") -> bytes:
    return b"HTTP/1.1 200 X\r\n%scontent-length: %d\r\n\r\n%s" % (head, len(body), body)


ANSWERS: dict[str, Any] = {
    "deep": answer(200, body=DEEP),
    "deep object": answer(200, body=b'{"data": %s, "model_path": %s}' % (DEEP, DEEP)),
    "not unicode": answer(200, body=b'{"data": [{"id": "\xff\xfe"}]}'),
    "surrogates": answer(
        200,
        body=b'{"data": [{"id": "\\ud800", "task_type": "\\udfff"}], "model_path": "\\ud800",'
        b' "version": "\\n\\u0000", "served_model_name": "\\ud800"}',
    ),
    "numbers": answer(
        200,
        body=b'{"data": [%s], "dp_size": %s, "created": NaN, "big": 1e999}' % (CARD, HUGE),
    ),
    "many copies": answer(200, body=b'{"data": [%s], "dp_size": %s}' % (CARD, b"9" * 300)),
    "kinds": answer(
        200, {"data": [None, 7, [], {"id": {}}, {"id": ["m"]}], "dp_size": "2", "task_type": {}}
    ),
    "a list": answer(200, [1, 2]),
    "odd cookie": raw(b"set-cookie: \xff=1\r\nset-cookie: a=b\r\n"),
    "odd header": raw(b"x-\xff: \xfe\x01\r\n"),
    "no header": raw(b"nothing\r\n"),
    "redirect": b"HTTP/1.1 302 X\r\nlocation: http://[::bad\xff/\r\ncontent-length: 0\r\n\r\n",
    "two lengths": raw(b"content-length: 7\r\n"),
    "negative length": b"HTTP/1.1 200 X\r\ncontent-length: -1\r\n\r\n",
    "bad chunk": b"HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    "switching": b"HTTP/1.1 101 X\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
    "status 999": b"HTTP/1.1 999 X\r\ncontent-length: 0\r\n\r\n",
    "no status": b"HTTP/1.1\r\n\r\n",
    "noise": bytes(range(256)) * 20,
    "endless head": endless,
    "interim": interim,
    "endless body": endless_body,
}
PATHS = ["/health", "/v1/models", "/server_info", "/v1/images/generations", "/v1/videos"]


def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing unexpected has happened."""
    assert [record for record in caplog.records if record.exc_info] == []


# The test's own client, cancelled while it sends, leaves the generator of httpx to the collector.
@pytest.mark.filterwarnings("ignore:Async generator 'httpx._content.ByteStream:ResourceWarning")
@pytest.mark.parametrize("path", PATHS)
def test_odd_answers(run_router: RunRouter, caplog: pytest.LogCaptureFixture, path: str) -> None:
    before = boundary.counts.total()

    async def test(pool: Deployment) -> None:
        sound = await pool.simulated()
        await pool.register(sound.url)
        for said in ANSWERS.values():
            more = {"/v1/videos?limit=100&order=asc": said} if path == "/v1/videos" else {}
            odd = await pool.script(**{path: said}, **more)
            with trio.move_on_after(0.15):
                await pool.http.post("/workers", params={"url": odd.url})
            for target in ("/v1/models", "/v1/videos", "/workers", "/weights", "/v1/list_loras"):
                with trio.move_on_after(0.1):
                    shown = await pool.http.get(target)
                    json.loads(shown.content, parse_constant=pytest.fail)
            known = pool.running.parts.registry.find(odd.url)
            for content in ({"prompt": "x"}, {"prompt": "x", "model": "m"}):
                # What is relayed unchanged may be nothing that this client takes.
                with trio.move_on_after(0.1), suppress(httpx.HTTPError):
                    await pool.http.post("/v1/videos", json=content)
                    await pool.http.post("/v1/images/generations", json=content)
                pool.http.cookies.clear()
            if known is not None:
                await pool.http.delete(f"/workers/{known.worker_id}")
            odd.stop()
        model = pool.running.parts.registry.get(sound.url).capabilities
        assert model is not None
        assert (await pool.image(model=model.models[0])).status_code == 200

    run_router(test)
    quiet(caplog)
    assert boundary.counts.total() == before


def test_an_answer_that_drips_is_not_read_for_ever(
    run_router: RunRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.control.client._READING", 0.2)

    async def drips(stream: trio.SocketStream) -> None:
        await stream.send_all(b"HTTP/1.1 200 X\r\ncontent-length: 9999\r\n\r\n")
        while True:
            await stream.send_all(b" ")
            await trio.sleep(0.01)

    async def test(pool: Deployment) -> None:
        worker = await pool.script(**{"/get_weights_checksum": drips})
        await pool.register(worker.url)
        [row] = (await pool.http.post("/get_weights_checksum", json={})).json()["results"]
        assert row["status_code"] == 504
        assert "was not answered whole within 0.2 s" in row["body"]["error"]

    run_router(test)


def test_an_answer_too_many_is_not_that_of_the_next_call(run_router: RunRouter) -> None:
    """A refused change of weights must not be acknowledged by what came before it."""

    async def test(pool: Deployment) -> None:
        twice = answer(200, {"transformer": "x"}) + answer(200, {"success": True})
        refusal = answer(400, {"success": False, "message": "no such folder"})
        worker = await pool.script(
            **{"/get_weights_checksum": twice, "/update_weights_from_disk": refusal}
        )
        await pool.register(worker.url)
        assert (await pool.http.post("/get_weights_checksum", json={})).status_code == 200
        change = await pool.http.post("/update_weights_from_disk", json={"model_path": "x"})
        assert change.status_code == 400
        assert change.json()["weight_version"] == 0

    run_router(test, health_check_interval=60.0)  # lest a probe take it


def test_an_id_that_cannot_be_one(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """The client has the worker's answer; the router keeps and follows nothing of it."""
    answers = {
        "/v1/models": answer(200, {"data": [{"id": "m", "task_type": "T2V"}]}),
        "/v1/videos": answer(200, body=b'{"id": "\\ud800", "status": "queued"}'),
        "/v1/meshes": answer(200, body=b'{"id": "a/b", "status": "queued"}'),
        "/v1/images/generations": answer(200, body=b'{"id": "\\ud800", "data": []}'),
    }

    async def test(lives: Lives) -> None:
        worker = ScriptedWorker(answers=answers)
        await lives.nursery.start(worker.run)
        async with lives.router() as pool:
            known = await pool.register(worker.url)
            for path in ("/v1/videos", "/v1/images/generations"):
                assert (await pool.http.post(path, json={"prompt": "x"})).status_code == 200
            await until(lambda: known.is_idle)
            await doubted(worker, known)
            # As a router of an earlier version has left it.
            store = pool.running.parts.store
            for number, kind in enumerate(("videos", "images", "meshes"), 7):
                store.put_row("owners", str(number), _owner(known, number, kind))
                store.put_row(f"assets/{number}", "\ud800", 7)
                store.put_row(f"assets/{number}", "good", 8)
            store.put_row("jobs", "\ud800", _job(known))
            await store.commit()
        async with lives.router() as pool:
            known = pool.running.parts.registry.get(worker.url)
            await until(lambda: known.health == "healthy", within=10)
            assert known.jobs == 0
            await doubted(worker, known)
        async with lives.router() as pool:
            assert (await pool.http.get("/live")).status_code == 200
        worker.stop()

    run_lives(test, tmp_path)
    quiet(caplog)


async def doubted(worker: ScriptedWorker, known: Worker) -> None:
    """It is asked for what it has made."""
    before = known.incarnation
    worker.hang_up()
    await until(lambda: known.incarnation > before and known.health == "healthy")


def _owner(worker: Worker, number: int, kind: str) -> dict[str, Any]:
    return {"number": number, "url": worker.url, "incarnation": worker.incarnation, "kind": kind}


def _job(worker: Worker) -> dict[str, Any]:
    told = {"job_id": "\ud800", "url": worker.url, "incarnation": worker.incarnation}
    return {**told, "endpoint": "video", "work": 0.0, "submitted": 0.0, "begun": None}


def test_a_watch_that_crashes_is_taken_up_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe, broken = watch_module.probe, True

    async def crash(client: Any, url: str, *more: Any) -> Any:
        if broken and url == bad:
            raise ZeroDivisionError("the probe")
        return await probe(client, url, *more)

    monkeypatch.setattr(watch_module, "probe", crash)
    bad = ""

    async def main() -> None:
        nonlocal bad, broken
        async with deployed(health_check_failure_threshold=1) as pool:
            odd, sound = await pool.script(), await pool.simulated()
            bad = odd.url
            await pool.register(sound.url)
            await pool.http.post("/workers", params={"url": bad})
            known = pool.running.parts.registry.get(bad)
            await until(lambda: known.health == "unhealthy")
            assert "ZeroDivisionError" in (known.health_reason or "")
            assert (await pool.image()).status_code == 200
            assert (await pool.http.get("/health")).json()["contained_errors"] > 0
            broken = False
            await until(lambda: known.health == "healthy", within=10)

    run(main)
    told = [record for record in caplog.records if record.exc_info]
    assert {record.levelno for record in told} == {logging.ERROR}
    assert all(bad in record.getMessage() for record in told)


def test_an_error_of_the_core_is_fatal(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with deployed() as pool:
            worker = await pool.script()
            known = await pool.register(worker.url)
            known.holds = None  # type: ignore[assignment]
            await pool.image()
            await trio.sleep_forever()

    with pytest.raises(ExceptionGroup) as caught:
        run(main)
    assert caught.group_contains(TypeError)


def test_an_error_of_the_core_under_our_own_endpoint_is_fatal_too() -> None:
    async def main() -> None:
        async with deployed() as pool:
            pool.running.parts.registry._workers = None  # type: ignore[assignment]
            await pool.http.get("/workers")
            await trio.sleep_forever()

    with pytest.raises(ExceptionGroup) as caught:
        run(main)
    assert caught.group_contains(AttributeError)
