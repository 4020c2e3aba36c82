"""Redirects of workers, and the slashes at the end of paths that are behind most of them."""

from __future__ import annotations

import pytest

from tests.integration.deployment import IMAGE, Deployment, RunRouter
from tests.integration.relay.harness import Peer, exchange, routed, run
from tests.integration.relay.wire import Message, request, response

IMAGES = "/v1/images/generations"


async def to_itself(peer: Peer) -> None:
    """Leads each request elsewhere, at the host that the worker was asked by, as FastAPI does."""
    while True:
        message = await peer.request()
        host = (message["host"] or b"").decode()
        await peer.send(response(307, f"Location: http://{host}/x/?a=b"))


def test_a_redirect_of_a_worker_stays_with_the_router() -> None:
    async def main() -> None:
        async with routed(to_itself) as router:
            got = await router.ask(request("GET", "/x"))
            assert (got.status, got["location"]) == (307, b"/x/?a=b")
            shaking = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13")
            key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
            got = await router.ask(request("GET", "/x", *shaking, key))
            assert (got.status, got["location"]) == (307, b"/x/?a=b")

    run(main)


@pytest.mark.parametrize(
    ("method", "sent", "reached"),
    [
        ("POST", f"{IMAGES}/", IMAGES),
        ("POST", f"{IMAGES}/?a=b/", f"{IMAGES}?a=b/"),
        ("POST", "/rollout/generate/", "/rollout/generate"),
        ("GET", f"{IMAGES}/", IMAGES),  # known, though not with this method
        ("POST", f"{IMAGES}%2F", IMAGES),
        ("GET", "/x/", "/x/"),
        ("GET", "/x//", "/x//"),
        ("POST", f"{IMAGES}//", f"{IMAGES}//"),
    ],
)
def test_the_slash_after_a_known_path_reaches_no_worker(
    method: str, sent: str, reached: str
) -> None:
    seen: Message
    seen, got = exchange(request(method, sent, body=b"{}"), response())
    assert got.status == 200
    assert seen.target == reached.encode()


def test_jobs_and_images_with_a_slash(run_router: RunRouter) -> None:
    async def test(at: Deployment) -> None:
        process = await at.simulated(model_path="wan", task_types=("T2V", "T2I"))
        await at.register(process.url)
        job = (await at.http.post("/v1/videos/", json=IMAGE)).json()
        for path in (f"/v1/videos/{job['id']}/", f"/v1/videos/?id={job['id']}"):
            assert (await at.http.get(path)).json()["id"] == job["id"], path
        listed = (await at.http.get("/v1/videos/")).json()
        assert [one["id"] for one in listed["data"]] == [job["id"]]
        picture = (await at.http.post(f"{IMAGES}/", json=IMAGE)).json()
        content = await at.http.get(f"/v1/images/{picture['id']}/content/")
        assert content.status_code == 200
        assert content.content.startswith(b"\x89PNG")
        assert (await at.http.post("/release_memory_occupation/")).status_code == 200
        assert (await at.http.post("/resume_memory_occupation/")).status_code == 200

    run_router(test)
