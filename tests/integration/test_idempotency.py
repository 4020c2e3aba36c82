"""Retries with an Idempotency-Key over real sockets: one generation, whatever happens."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import trio

from tests.integration.api.pools import Member, is_ours, restart
from tests.integration.deployment import (
    IMAGE,
    Deployment,
    RunRouter,
    ScriptedWorker,
    answer,
    never,
    until,
    when,
)
from tests.integration.lives import Lives, run_lives
from tests.integration.test_dispatch import LONG, image, registered
from tests.patience import fail_after

IMAGES = "/v1/images/generations"
VIDEO = {"prompt": "p", "size": "64x64", "num_frames": 10, "num_inference_steps": 1}
GOOD = answer(200, {"id": "i", "data": []})


async def ask(
    router: Deployment, key: str = "k", path: str = IMAGES, content: Any = IMAGE, **headers: str
) -> httpx.Response:
    named = {"idempotency-key": key}
    named |= {name.replace("_", "-"): value for name, value in headers.items()}
    return await router.http.post(path, json=content, headers=named)


@asynccontextmanager
async def a_client(router: Deployment, **asked: Any) -> AsyncIterator[trio.CancelScope]:
    """A client that asks, and leaves when its scope is cancelled."""
    async with trio.open_nursery() as nursery:

        async def client() -> None:
            # Of its own, so that its connection is closed when it leaves.
            async with httpx.AsyncClient(
                base_url=router.address, trust_env=False, timeout=None
            ) as http:
                headers = {"idempotency-key": asked.get("key", "k")}
                await http.post(
                    asked.get("path", IMAGES), json=asked.get("content", IMAGE), headers=headers
                )

        nursery.start_soon(client)
        yield nursery.cancel_scope


def begun(script: ScriptedWorker, path: str = IMAGES) -> int:
    return script.asked.count(f"POST {path}")


def entry_of(router: Deployment) -> Any:
    """What the router knows of its only key."""
    (entry,) = router.running.keys._entries.values()
    return entry


def test_sixty_requests_at_once_make_one_generation(run_router: RunRouter) -> None:
    async def test(router: Deployment) -> None:
        worker = await registered(router)
        answers: list[httpx.Response] = []

        async def one() -> None:
            answers.append(await ask(router, content=image(LONG)))

        async with trio.open_nursery() as nursery:
            for _ in range(60):
                nursery.start_soon(one)
            await until(lambda: worker.scheduler.running and entry_of(router).joiners == 59)
            worker.scheduler.hurry()
        assert {each.status_code for each in answers} == {200}
        assert len({each.content for each in answers}) == 1
        assert len({each.headers["x-request-id"] for each in answers}) == 60
        for header in ("content-type", "x-worker-id", "x-weight-version"):
            assert len({each.headers[header] for each in answers}) == 1
        assert [each.headers.get("idempotent-replayed") for each in answers].count("true") == 59
        late = await ask(router, content=image(LONG))
        assert late.content == answers[0].content
        assert len(worker.log.generations()) == 1

    run_router(test)


def test_another_key_or_client_is_another_request(run_router: RunRouter) -> None:
    async def test(router: Deployment) -> None:
        worker = await registered(router)
        for key, client in (("k", "a"), ("k", "b"), ("l", "a"), ("k", "a")):
            assert (await ask(router, key, content=image(0.01), x_client_id=client)).is_success
        assert len(worker.log.generations()) == 3

    run_router(test)


def test_a_key_is_for_one_request(run_router: RunRouter) -> None:
    async def test(router: Deployment) -> None:
        script = await router.script()
        await router.register(script.url)
        assert (await ask(router)).status_code == 200
        for other in (
            ask(router, content={**IMAGE, "seed": 2}),
            ask(router, path=f"{IMAGES}?seed=2"),
            ask(router, path="/rollout/generate"),
            ask(router, path="/v1/videos"),
            ask(router, x_min_weight_version="0"),
            ask(router, x_exact_weight_version="0"),
        ):
            is_ours(await other, 409, "idempotency_mismatch")
        assert begun(script) == 1
        for key in ("two words", "x" * 129, ""):
            is_ours(await ask(router, key), 400, "invalid_header")

    run_router(test)


def test_who_has_left_may_come_back_for_the_answer(run_router: RunRouter) -> None:
    async def test(router: Deployment) -> None:
        gate = trio.Event()
        script = await router.script(**{IMAGES: when(gate, GOOD)})
        await router.register(script.url)
        for key in ("joins", "late"):
            gate = trio.Event()
            script.answers[IMAGES] = when(gate, GOOD)
            async with a_client(router, key=key) as leaving:
                await until(lambda: begun(script) == 1)
                leaving.cancel()
            if key == "joins":
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(got_whole, router, key)
                    await until(lambda: entry_of(router).joiners == 1)
                    gate.set()
            else:
                gate.set()
            await got_whole(router, key)
            assert begun(script) == 1
            script.asked.clear()
            router.running.keys._entries.clear()

    run_router(test)


async def got_whole(router: Deployment, key: str) -> None:
    got = await ask(router, key)
    assert (got.status_code, got.content) == (200, GOOD.partition(b"\r\n\r\n")[2])
    assert got.headers["idempotent-replayed"] == "true"


def test_who_leaves_while_waiting_frees_the_key(run_router: RunRouter) -> None:
    async def test(router: Deployment) -> None:
        worker = await registered(router)
        queue = router.running.parts.dispatcher.queue
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, router, "other", IMAGES, image(LONG))
            await until(lambda: worker.scheduler.running)
            async with a_client(router) as leaving:
                await until(lambda: queue.waiting == 1)
                leaving.cancel()
            await until(lambda: queue.waiting == 0)
            nursery.start_soon(ask, router)
            await until(lambda: queue.waiting == 1)
            worker.scheduler.hurry()
        assert len(worker.log.generations()) == 2

    run_router(test)


def test_what_others_have_joined_waits_on(run_router: RunRouter) -> None:
    async def test(router: Deployment) -> None:
        worker = await registered(router)
        queue = router.running.parts.dispatcher.queue
        answers: list[httpx.Response] = []

        async def join() -> None:
            answers.append(await ask(router))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, router, "other", IMAGES, image(LONG))
            await until(lambda: worker.scheduler.running)
            async with a_client(router) as first:
                await until(lambda: queue.waiting == 1)
                (entry,) = [e for e in router.running.keys._entries.values() if not e.delivered]
                nursery.start_soon(join)
                async with a_client(router) as second:
                    await until(lambda: entry.joiners == 2)
                    first.cancel()
                    await until(lambda: entry.left)
                    second.cancel()
                await until(lambda: entry.joiners == 1)
            assert queue.waiting == 1
            worker.scheduler.hurry()
        assert answers[0].status_code == 200
        assert len(worker.log.generations()) == 2

    run_router(test)


def test_the_last_of_those_who_wait_takes_the_request_along(run_router: RunRouter) -> None:
    async def test(router: Deployment) -> None:
        worker = await registered(router)
        queue = router.running.parts.dispatcher.queue
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, router, "other", IMAGES, image(LONG))
            await until(lambda: worker.scheduler.running)
            async with a_client(router) as first:
                await until(lambda: queue.waiting == 1)
                (entry,) = [e for e in router.running.keys._entries.values() if not e.delivered]
                async with a_client(router) as second:
                    await until(lambda: entry.joiners == 1)
                    first.cancel()
                    await until(lambda: entry.left)
                    second.cancel()
            await until(lambda: queue.waiting == 0)
            worker.scheduler.hurry()
        assert len(worker.log.generations()) == 1

    run_router(test)


def test_what_no_worker_has_seen_frees_the_key(run_router: RunRouter) -> None:
    async def test(router: Deployment) -> None:
        is_ours(await ask(router), 503, "no_workers")
        worker = await registered(router)
        queue = router.running.parts.dispatcher.queue
        answers: list[httpx.Response] = []

        async def one() -> None:
            answers.append(await ask(router, x_group_id="g"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, router, "other", IMAGES, image(LONG))
            await until(lambda: worker.scheduler.running)
            for _ in range(3):
                nursery.start_soon(one)
            entries = router.running.keys._entries.values()
            await until(lambda: [e for e in entries if e.joiners == 2])
            await until(lambda: queue.waiting == 1)
            gone = await router.http.delete("/queue", params={"group": "g"})
            assert gone.json() == {"cancelled": 1}
            await until(lambda: len(answers) == 3)
            for each in answers:
                assert is_ours(each, 409, "cancelled")["retry_safe"] is True
            worker.scheduler.hurry()
        assert (await ask(router)).status_code == 200
        assert len(worker.log.generations()) == 2

    run_router(test)


def test_a_doubtful_generation_is_made_again_once_its_process_is_gone(
    run_router: RunRouter,
) -> None:
    async def test(router: Deployment) -> None:
        script = await router.script()
        known = await router.register(script.url)

        async def break_off(stream: trio.SocketStream) -> None:
            await stream.aclose()

        script.answers[IMAGES] = break_off
        for _ in range(3):
            got = is_ours(await ask(router), 502, "worker_disconnected")
            assert got["retry_safe"] is False
        assert begun(script) == 1
        script.answers[IMAGES] = GOOD
        router.running.parts.registry.reincarnate(known, "another process")
        await until(lambda: known.health == "healthy" and known.met)
        assert (await ask(router)).status_code == 200
        assert begun(script) == 2

    run_router(test)


@pytest.mark.parametrize(("status", "times"), [(500, 2), (429, 2), (422, 2), (502, 1), (504, 1)])
def test_a_failure_that_is_certain_frees_the_key(
    run_router: RunRouter, status: int, times: int
) -> None:
    async def test(router: Deployment) -> None:
        gate = trio.Event()
        script = await router.script(**{IMAGES: when(gate, answer(status, {"detail": "no"}))})
        await router.register(script.url)
        answers: list[httpx.Response] = []

        async def one() -> None:
            answers.append(await ask(router))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one)
            nursery.start_soon(one)
            await until(lambda: begun(script) and entry_of(router).joiners == 1)
            gate.set()
        assert [each.status_code for each in answers] == [status] * 2
        assert {each.content for each in answers} == {b'{"detail": "no"}'}
        script.answers[IMAGES] = GOOD
        late = await ask(router)
        assert late.status_code == (status if times == 1 else 200)
        assert begun(script) == times

    run_router(test)


def test_an_answer_that_breaks_off_is_not_made_again(run_router: RunRouter) -> None:
    async def test(router: Deployment) -> None:
        async def half(stream: trio.SocketStream) -> None:
            await stream.send_all(b"HTTP/1.1 200 X\r\ncontent-length: 9\r\n\r\nhalf")
            await stream.aclose()

        script = await router.script(**{IMAGES: half})
        await router.register(script.url)
        with pytest.raises(httpx.RemoteProtocolError):
            await ask(router)
        got = is_ours(await ask(router), 502, "worker_cut_off")
        assert got["retry_safe"] is False
        assert begun(script) == 1

    run_router(test)


def test_an_answer_too_large_to_keep_is_clear(run_router: RunRouter) -> None:
    async def test(router: Deployment) -> None:
        gate, large = trio.Event(), answer(200, body=b"x" * 5000)
        script = await router.script(**{"/rollout/generate": when(gate, large)})
        await router.register(script.url)
        answers: list[httpx.Response] = []

        async def one() -> None:
            answers.append(await ask(router, path="/rollout/generate"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one)
            nursery.start_soon(one)
            path = "/rollout/generate"
            await until(lambda: begun(script, path) and entry_of(router).joiners == 1)
            gate.set()
        first, joined = sorted(answers, key=lambda each: each.status_code)
        assert first.content == b"x" * 5000
        for each in (joined, await ask(router, path="/rollout/generate")):
            assert is_ours(each, 409, "already_done")["retry_safe"] is False
        assert begun(script, "/rollout/generate") == 1
        assert router.running.keys._kept == 0

    run_router(test, idempotency_bytes=16 * 4096)


@pytest.mark.parametrize("early", [True, False])
def test_a_large_answer_is_not_read_for_nobody(run_router: RunRouter, early: bool) -> None:
    async def test(router: Deployment) -> None:
        gate, hung_up = trio.Event(), trio.Event()

        async def large(stream: trio.SocketStream) -> None:
            if early:
                await gate.wait()
            await stream.send_all(b"HTTP/1.1 200 X\r\ncontent-length: 99999\r\n\r\n" + b"x" * 9000)
            await stream.receive_some()
            hung_up.set()

        script = await router.script(**{IMAGES: large})
        await router.register(script.url)
        async with a_client(router) as leaving:
            await until(lambda: begun(script))
            entry = entry_of(router)
            if not early:  # the answer has outgrown its bound when the client leaves
                await until(lambda: entry.record.sent >= 9000)
            leaving.cancel()
        await until(lambda: entry.left)
        gate.set()
        with fail_after(5):
            await hung_up.wait()
        is_ours(await ask(router), 409, "already_done")
        assert begun(script) == 1

    run_router(test, idempotency_bytes=16 * 4096)


def test_kept_answers_are_bounded_together(run_router: RunRouter) -> None:
    async def test(router: Deployment) -> None:
        script = await router.script(**{IMAGES: answer(200, body=b"x" * 1000)})
        await router.register(script.url)
        for number in range(20):
            assert (await ask(router, str(number))).status_code == 200
        assert router.running.keys._kept == 16_000
        is_ours(await ask(router, "3"), 409, "already_done")
        assert (await ask(router, "4")).status_code == 200
        assert begun(script) == 20

    run_router(test, idempotency_bytes=16_000)


def test_the_number_of_keys_is_bounded(run_router: RunRouter) -> None:
    async def test(router: Deployment) -> None:
        script = await router.script()
        await router.register(script.url)
        for number in range(4):
            assert (await ask(router, str(number))).status_code == 200
        assert len(router.running.keys._entries) == 3
        await ask(router, "1")
        assert begun(script) == 4
        await ask(router, "0")
        assert begun(script) == 5

    run_router(test, idempotency_keys=3)


def test_a_form_has_a_new_boundary_each_time(run_router: RunRouter) -> None:
    async def test(router: Deployment) -> None:
        script = await router.script(**{"/v1/images/edits": GOOD})
        script.answers["/v1/models"] = answer(200, {"data": [{"id": "m", "task_type": "TI2I"}]})
        await router.register(script.url)

        async def edit(picture: bytes, boundary: str) -> httpx.Response:
            parts = (
                f'--{boundary}\r\ncontent-disposition: form-data; name="prompt"\r\n\r\na kite\r\n'
                f'--{boundary}\r\ncontent-disposition: form-data; name="image"; '
                f'filename="a"\r\n\r\n'
            ).encode()

            async def pieces() -> AsyncIterator[bytes]:
                body = parts + picture + f"\r\n--{boundary}--\r\n".encode()
                for begin in range(0, len(body), 7):
                    yield body[begin : begin + 7]

            headers = {
                "idempotency-key": "k",
                "content-type": f"multipart/form-data; boundary={boundary}",
            }
            return await router.http.post("/v1/images/edits", content=pieces(), headers=headers)

        assert (await edit(b"picture" * 99, "one")).status_code == 200
        assert (await edit(b"picture" * 99, "another")).status_code == 200
        is_ours(await edit(b"picture" * 98, "one"), 409, "idempotency_mismatch")
        assert begun(script, "/v1/images/edits") == 1

    run_router(test)


def test_a_large_body_is_compared_whole(run_router: RunRouter) -> None:
    async def test(router: Deployment) -> None:
        sizes: list[int] = []
        script = await router.script()
        await router.register(script.url)
        body = {**IMAGE, "pad": "x" * 100_000}
        assert (await ask(router, content=body)).status_code == 200
        assert (await ask(router, content=body)).status_code == 200
        body["pad"] = body["pad"][:-1] + "y"
        is_ours(await ask(router, content=body), 409, "idempotency_mismatch")
        assert begun(script) == 1
        (head,) = [head for head in script.heads if head.startswith(b"POST")]
        sizes = [int(line[16:]) for line in head.lower().splitlines() if b"content-length" in line]
        assert sizes[0] > 100_000

    run_router(test, peek_limit=1000)


def test_a_stream_of_events_is_joined_whole(run_router: RunRouter) -> None:
    async def test(router: Deployment) -> None:
        gate = trio.Event()

        async def events(stream: trio.SocketStream) -> None:
            head = b"HTTP/1.1 200 X\r\ncontent-type: text/event-stream\r\n"
            await stream.send_all(head + b"transfer-encoding: chunked\r\n\r\n")
            await stream.send_all(b"9\r\ndata: 1\n\n\r\n")
            await gate.wait()
            await stream.send_all(b"9\r\ndata: 2\n\n\r\n0\r\n\r\n")

        script = await router.script(**{IMAGES: events})
        await router.register(script.url)
        answers: list[httpx.Response] = []

        async def one() -> None:
            answers.append(await ask(router))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one)
            nursery.start_soon(one)
            await until(lambda: begun(script) and entry_of(router).joiners == 1)
            gate.set()
        assert {each.content for each in answers} == {b"data: 1\n\ndata: 2\n\n"}
        assert begun(script) == 1

    run_router(test)


# Jobs.


def test_a_retry_gets_the_same_job(run_router: RunRouter) -> None:
    async def test(router: Deployment) -> None:
        sim = await router.simulated(task_types=("T2V",))
        await router.register(sim.url)
        answers: list[httpx.Response] = []

        async def one() -> None:
            answers.append(await ask(router, path="/v1/videos", content=VIDEO))

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(one)
        assert len({each.content for each in answers}) == 1
        job = answers[0].json()["id"]
        assert (await router.http.get(f"/v1/videos/{job}")).status_code == 200
        assert len(sim.log.generations()) == 1

    run_router(test)


def test_a_job_outlives_the_router_under_its_key(tmp_path: Any) -> None:
    async def test(lives: Lives) -> None:
        async with lives.router() as router:
            sim = await router.simulated(task_types=("T2V",))
            known = await router.register(sim.url)
            first = await ask(router, path="/v1/videos", content=VIDEO)
            assert first.status_code == 200
        async with lives.router() as router:
            known = router.running.parts.registry.get(sim.url)
            await until(lambda: known.health == "healthy" and known.suspicion is None)
            again = await ask(router, path="/v1/videos", content=VIDEO)
            assert (again.status_code, again.content) == (200, first.content)
            assert again.headers["x-worker-id"] == first.headers["x-worker-id"]
            other = {**VIDEO, "prompt": "other"}
            is_ours(
                await ask(router, path="/v1/videos", content=other), 409, "idempotency_mismatch"
            )
            assert len(sim.log.generations()) == 1
            # Another process has no such job: the retry gets a new one.
            incarnation = known.incarnation
            new = await restart(router, Member(sim, known), task_types=("T2V",))
            lives.workers.append(new.sim)
            await until(lambda: known.incarnation > incarnation and known.health == "healthy")
            fresh = await ask(router, path="/v1/videos", content=VIDEO)
            assert fresh.status_code == 200
            assert fresh.json()["id"] != first.json()["id"]
            assert len(new.sim.log.generations()) == 1

    run_lives(test, tmp_path)


def test_a_job_in_doubt_at_the_death_of_the_router_is_not_made_again(tmp_path: Any) -> None:
    models = answer(200, {"data": [{"id": "m", "task_type": "T2V"}]})

    async def test(lives: Lives) -> None:
        async with lives.router() as router:
            jobs = {"/v1/models": models, "/v1/videos": never}
            script = await router.script(**jobs)
            try:
                await router.register(script.url)
                async with a_client(router, path="/v1/videos", content=VIDEO) as leaving:
                    await until(lambda: begun(script, "/v1/videos") == 1)
                    leaving.cancel()
                script.answers["/v1/videos"] = answer(400)
                refused = await ask(router, "refused", path="/v1/videos", content=VIDEO)
                assert refused.status_code == 400
                await router.running.keys.store.commit()
            except BaseException:
                script.stop()
                raise
        async with lives.router() as router:
            script.answers["/v1/videos"] = answer(200, {"id": "j", "status": "queued"})
            known = router.running.parts.registry.get(script.url)
            await until(lambda: known.health == "healthy" and known.suspicion is None)
            lost = await ask(router, path="/v1/videos", content=VIDEO)
            assert is_ours(lost, 502, "worker_failed")["retry_safe"] is False
            other = await ask(router, path="/v1/videos", content={**VIDEO, "prompt": "other"})
            is_ours(other, 409, "idempotency_mismatch")
            assert begun(script, "/v1/videos") == 2
            made = await ask(router, "refused", path="/v1/videos", content=VIDEO)
            assert made.status_code == 200
            script.stop()

    run_lives(test, tmp_path)
