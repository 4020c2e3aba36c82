"""`X-Priority` over real sockets: who goes first, what `GET /queue` shows, what is refused."""

from __future__ import annotations

import httpx
import pytest
import trio

from tests.integration.api.pools import is_ours
from tests.integration.deployment import Deployment, RunRouter, until
from tests.integration.test_dispatch import LONG, image, registered, video


def test_urgent_requests_go_first_and_the_queue_shows_them(run_router: RunRouter) -> None:
    async def test(router: Deployment) -> None:
        worker = await registered(router)
        queue = router.running.parts.dispatcher.queue
        answers: list[httpx.Response] = []

        async def ask(name: str, **headers: str) -> None:
            answers.append(
                await router.http.post(
                    "/v1/images/generations",
                    json=image(LONG),
                    headers={"x-request-id": name, **headers},
                )
            )

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, "running")
            await until(lambda: worker.scheduler.running)
            for name in ("low", "normal", "", "high"):
                headers = {"x-priority": name} if name else {}
                nursery.start_soon(lambda n=name, h=headers: ask(n or "none", **h))
                waiting = queue.waiting
                await until(lambda before=waiting: queue.waiting > before)
            shown = (await router.http.get("/queue")).json()
            rows = {row["priority"]: row["waiting"] for row in shown["groups"]}
            assert rows == {"low": 1, "normal": 2, "high": 1}
            for done in range(1, 6):
                await until(lambda: worker.scheduler.running)
                worker.scheduler.hurry()
                await until(lambda count=done: len(answers) == count)
        served = [entry.request_id for entry in worker.log.generations()]
        assert served == ["running", "high", "normal", "none", "low"]
        assert [answer.status_code for answer in answers] == [200] * 5
        sent = {name.lower() for entry in worker.log.requests for name, _ in entry.headers}
        assert "x-priority" not in sent
        assert "x-request-id" in sent

    run_router(test)


@pytest.mark.parametrize("word", ["urgent", "HIGH", "1", ""])
def test_a_wrong_priority_is_refused(run_router: RunRouter, word: str) -> None:
    async def test(router: Deployment) -> None:
        worker = await registered(router, task_types=("T2I", "T2V"))
        headers = {"x-priority": word}
        upgrade = {
            "connection": "upgrade",
            "upgrade": "websocket",
            "sec-websocket-version": "13",
            "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
        }
        for answer in (
            await router.http.post("/v1/images/generations", json=image(0.01), headers=headers),
            await router.http.post("/v1/videos", json=video(0.01), headers=headers),
            await router.http.get("/v1/realtime_video/x", headers={**headers, **upgrade}),
        ):
            said = is_ours(answer, 400, "invalid_header")
            assert "X-Priority must be high, normal or low" in said["error"]
        assert worker.log.generations() == []

    run_router(test)


def test_the_ageing_time_is_a_setting(run_router: RunRouter) -> None:
    async def test(router: Deployment) -> None:
        assert router.running.parts.dispatcher.queue.ageing.seconds == 7.0
        await trio.lowlevel.checkpoint()

    run_router(test, priority_ageing=7.0)
