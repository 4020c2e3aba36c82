"""Paths that nobody knows, and those that no single worker may answer."""

from __future__ import annotations

import pytest

from tests.integration.api.pools import IMAGES, Member, is_ours, run_with_pool
from tests.integration.deployment import Deployment, run_deployed
from tests.integration.deployment import answer as bytes_of


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/favicon.ico", 404, "unknown_path"),
    ],
)
def test_what_no_worker_may_answer(path: str, status: int, code: str) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        is_ours(await pool.http.get(path), status, code)
        assert a.asked("GET", path) == []

    run_with_pool(test, IMAGES)


@pytest.mark.parametrize(
    ("path", "nearest"),
    [
        ("/v1/imagez/generations", "/v1/images/generations"),
        ("/v1/video", "/v1/videos"),
        ("/qqqqqqqqqqqqqqqqqq", None),
    ],
)
def test_the_nearest_route_is_named(path: str, nearest: str | None) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        said = is_ours(await pool.http.post(path, json={}), 404, "unknown_path")
        assert said["nearest"] == nearest
        assert len(a.asked("POST", path)) == 1

    run_with_pool(test, IMAGES)


def test_other_words_of_a_worker_pass() -> None:
    """It knows the path: what it misses is something else."""
    words = b'{"detail":"Video not found"}'

    async def test(pool: Deployment) -> None:
        worker = await pool.script(**{"/elsewhere": bytes_of(404, body=words)})
        await pool.register(worker.url)
        for method in ("GET", "HEAD"):
            told = await pool.http.request(method, "/elsewhere")
            assert told.status_code == 404
            assert "x-worker-id" in told.headers
        assert (await pool.http.get("/elsewhere")).content == words

    run_deployed(test)
