"""What waits is cancelled, by group and by client, over real sockets."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import trio

from tests.integration.api.pools import is_ours
from tests.integration.deployment import Deployment, RunRouter, until
from tests.integration.test_dispatch import LONG, image, registered

Names = tuple[str, str]  # group and client


async def busy(router: Deployment, nursery: trio.Nursery, answers: list[httpx.Response]) -> Any:
    """A worker with a generation that lasts until it is hurried; the generation has a group."""
    worker = await registered(router)

    async def run() -> None:
        headers = {"x-group-id": "g", "x-client-id": "a"}
        answers.append(
            await router.http.post("/v1/images/generations", json=image(LONG), headers=headers)
        )

    nursery.start_soon(run)
    await until(lambda: worker.scheduler.running)
    return worker


def test_a_group_that_waits_is_cancelled(run_router: RunRouter) -> None:
    async def test(router: Deployment) -> None:
        runs: list[httpx.Response] = []
        async with trio.open_nursery() as nursery:
            worker = await busy(router, nursery, runs)
            names = [("g", ""), ("g", ""), ("g", "a"), ("h", "a"), ("", "")]
            answers = await ask_all(router, nursery, names)
            gone = await router.http.delete("/queue", params={"group": "g"})
            assert (gone.status_code, gone.json()) == (200, {"cancelled": 3})
            await until(lambda: sum(map(len, answers.values())) == 3)
            assert set(answers) == {("g", ""), ("g", "a")}
            for answer in (one for some in answers.values() for one in some):
                assert is_ours(answer, 409, "cancelled")["retry_safe"] is True
                # The client knows what it cancelled: its library must not ask again by itself.
                assert answer.headers["x-should-retry"] == "false"
            again = await router.http.delete("/queue", params={"group": "g"})
            assert again.json() == {"cancelled": 0}
            await until(lambda: worker.scheduler.running)
            worker.scheduler.hurry()
        # What ran, and what was not meant, came through.
        assert [answer.status_code for answer in runs] == [200]
        assert [one.status_code for one in answers["h", "a"] + answers["", ""]] == [200, 200]
        assert len(worker.log.generations()) == 3

    run_router(test)


def test_group_and_client_must_both_fit(run_router: RunRouter) -> None:
    async def test(router: Deployment) -> None:
        runs: list[httpx.Response] = []
        async with trio.open_nursery() as nursery:
            worker = await busy(router, nursery, runs)
            names = [("g", "a"), ("g", "b"), ("h", "a"), ("h", "b"), ("i", "ü")]
            answers = await ask_all(router, nursery, names)

            async def cancelled(**params: Any) -> int:
                gone = await router.http.delete("/queue", params=params)
                return int(gone.raise_for_status().json()["cancelled"])

            assert await cancelled(group="g", client="x") == 0
            assert await cancelled(group="g", client="a") == 1
            assert await cancelled(client="b") == 2
            assert await cancelled(client="ü") == 1
            assert await cancelled(group=["g", "h"]) == 1
            await until(lambda: len(answers) == 5)
            worker.scheduler.hurry()
        assert len(worker.log.generations()) == 1

    run_router(test)


async def ask_all(
    router: Deployment, nursery: trio.Nursery, names: list[Names]
) -> dict[Names, list[httpx.Response]]:
    """Requests that wait, as a group and a client; their answers as they come."""
    answers: dict[Names, list[httpx.Response]] = {}

    async def ask(name: Names) -> None:
        headers = {
            header: value.encode()
            for header, value in zip(("x-group-id", "x-client-id"), name, strict=True)
            if value
        }
        got = await router.http.post("/v1/images/generations", json=image(0.01), headers=headers)
        answers.setdefault(name, []).append(got)

    for name in names:
        nursery.start_soon(ask, name)
    queue = router.running.parts.dispatcher.queue
    await until(lambda: queue.waiting == len(names))
    return answers


def test_a_cancellation_names_what_it_means(run_router: RunRouter) -> None:
    async def test(router: Deployment) -> None:
        for params, code in (
            ({}, "missing_field"),
            ({"group": ""}, "invalid_field"),
            ({"client": ""}, "invalid_field"),
            ({"groups": "g"}, "unsupported_fields"),
        ):
            is_ours(await router.http.delete("/queue", params=params), 400, code)

    run_router(test)


@pytest.mark.parametrize("name", [b"", b"two words", b"\xc3\xbc", b"x" * 129])
def test_a_group_has_a_readable_name(run_router: RunRouter, name: bytes) -> None:
    async def test(router: Deployment) -> None:
        worker = await registered(router)
        answer = await router.http.post(
            "/rollout/generate", json=image(0.01), headers={"x-group-id": name}
        )
        is_ours(answer, 400, "invalid_header")
        assert worker.log.generations() == []

    run_router(test)
