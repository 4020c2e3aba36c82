"""What OpenAI's SDK does of itself when a generation fails: never a second one that may be made."""

from __future__ import annotations

import openai
import pytest
import trio

from tests.integration.deployment import Deployment, RunRouter, ScriptedWorker, answer

IMAGES = "/v1/images/generations"


async def generate(at: Deployment) -> openai.APIStatusError | None:
    """Call the SDK as most programs do, with its own retries."""

    def call() -> openai.APIStatusError | None:
        with openai.OpenAI(base_url=f"{at.address}/v1", api_key="none", timeout=10) as client:
            try:
                client.images.generate(prompt="a kite", model="m")
            except openai.APIStatusError as error:
                return error
            return None

    return await trio.to_thread.run_sync(call)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


async def break_off(stream: trio.SocketStream) -> None:
    await stream.aclose()


def begun(script: ScriptedWorker) -> int:
    return script.asked.count(f"POST {IMAGES}")


def test_a_generation_that_broke_off_is_begun_once(run_router: RunRouter) -> None:
    async def test(at: Deployment) -> None:
        script = await at.script(**{IMAGES: break_off})
        await at.register(script.url)
        error = await generate(at)
        assert error is not None
        assert (error.status_code, error.response.headers["x-should-retry"]) == (502, "false")
        assert error.response.json()["retry_safe"] is False
        assert begun(script) == 1

    run_router(test)


def test_what_the_pool_refuses_is_asked_again(run_router: RunRouter) -> None:
    async def test(at: Deployment) -> None:
        error = await generate(at)
        assert error is not None
        assert (error.status_code, error.response.headers["x-should-retry"]) == (503, "true")

    run_router(test)


def test_what_a_worker_answers_has_no_word_of_ours(run_router: RunRouter) -> None:
    async def test(at: Deployment) -> None:
        script = await at.script(**{IMAGES: answer(422, {"detail": "no"})})
        await at.register(script.url)
        response = await at.image()
        assert response.status_code == 422
        assert "x-should-retry" not in response.headers

    run_router(test)


def test_what_contradicts_the_pool_is_asked_once(run_router: RunRouter) -> None:
    async def test(at: Deployment) -> None:
        script = await at.script()
        await at.register(script.url)
        response = await at.http.post(IMAGES, json={}, headers={"X-Min-Weight-Version": "7"})
        assert response.status_code == 409
        assert response.headers["x-should-retry"] == "false"

    run_router(test)


def test_a_generation_that_the_router_fails_is_asked_once(
    run_router: RunRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    async def fails(*given: object, **_: object) -> None:
        asked.append(given)
        raise ValueError("unexpected")

    async def test(at: Deployment) -> None:
        monkeypatch.setattr("router.relay.forward.Forwarder.run", fails)
        error = await generate(at)
        assert error is not None
        assert (error.status_code, error.response.headers["x-should-retry"]) == (500, "false")
        assert len(asked) == 1

    run_router(test)
