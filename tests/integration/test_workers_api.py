"""`/workers`, `/health`, `/live`, `/ready` over HTTP, against a whole router."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import httpx
import pytest
import trio

from router import boundary
from router.pool.worker import Health
from router.web import workers as web_workers
from tests.integration.deployment import (
    DEFAULTS,
    Deployment,
    RunRouter,
    ScriptedWorker,
    answer,
    never,
    until,
    when,
)
from tests.patience import fail_after

IMAGES = "/v1/images/generations"


def path_of(url: str) -> str:
    return "/workers/" + quote(url, safe="")


def refused(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The body of an error of the router, after checking its shape."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body: dict[str, Any] = response.json()
    assert body["code"] == code
    assert body["error"]
    assert body["request_id"] == response.headers["x-request-id"]
    return body


# POST /workers


@pytest.mark.parametrize(
    "form",
    [
        lambda url: {"params": {"url": url}},
        lambda url: {"params": {"worker_url": url}},
        lambda url: {"json": {"url": url}},
        lambda url: {"json": {"worker_url": url}},
        lambda url: {"params": {"url": url}, "json": {"url": url}},
        lambda url: {"params": {"url": url}, "json": {}},
        lambda url: {"json": {"url": url, "worker_url": None, "max_concurrency": 3}},
        lambda url: {"json": {"url": f" {url.upper()}/ "}},
    ],
)
def test_registering(run_router: RunRouter, form: Any) -> None:
    async def test(at: Deployment) -> None:
        process = await at.simulated(model_path="org/picture", task_types=("T2I", "T2V"), dp_size=2)
        given = form(process.url)
        response = await at.http.post("/workers", **given)
        assert response.status_code == 200
        body = response.json()
        assert (body["status"], body["message"]) == ("success", "The worker is healthy")
        assert body["worker"] == {
            "worker_id": quote(process.url, safe=""),
            "id": quote(process.url, safe=""),
            "name": process.url.removeprefix("http://"),
            "display_id": process.url.removeprefix("http://"),
            "url": process.url,
            "active_requests": 0,
            "is_healthy": True,
            "is_dead": False,
            "is_sleeping": False,
            "consecutive_failures": 0,
            "video_support": True,
            "routable": True,
            "reasons": [],
            "health": "healthy",
            "health_reason": None,
            "admin": "enabled",
            "memory": "awake",
            "weights": "current",
            "weight_version": 0,
            "weights_reason": None,
            "origin": "registered",
            "pool": "default",
            "kind": "sglang",
            "incarnation": 1,
            "suspicion": None,
            "trial": None,
            "launch": None,
            "models": ["org/picture"],
            "model_path": "org/picture",
            "task_types": ["T2I", "T2V"],
            "output_types": body["worker"]["output_types"],
            "max_concurrency": (given.get("json") or {}).get("max_concurrency", 2),
            "slots_in_use": 0,
            "jobs": 0,
            "ghosts": 0,
            "work": [],
            "outstanding_seconds": 0,
            "seconds_per_unit_of_work": {},
        }
        assert (await at.image()).status_code == 200

    run_router(test)


def test_registering_again_changes_nothing(run_router: RunRouter) -> None:
    async def test(at: Deployment) -> None:
        process = await at.simulated()
        port = process.url.rpartition(":")[2]
        first = (await at.http.post("/workers", json={"url": process.url})).json()["worker"]
        for spelling in (f"HTTP://127.0.0.1:{port}/", f"http://127.1:{port}"):
            again = await at.http.post("/workers", json={"url": spelling})
            assert again.status_code == 200
            assert again.json()["worker"] == first
        await at.http.put(path_of(process.url), json={"draining": True})
        again = await at.http.post("/workers", json={"url": process.url, "max_concurrency": 7})
        assert (again.json()["worker"]["admin"], again.json()["worker"]["max_concurrency"]) == (
            "draining",
            7,
        )
        assert (await at.http.get("/workers")).json()["total"] == 1

    run_router(test)


def test_engines_register_with_what_they_know(run_router: RunRouter) -> None:
    """What trainers' engines send, word for word, and how they look for themselves at their end."""

    async def test(at: Deployment) -> None:
        process = await at.simulated()
        sent = {"url": process.url, "worker_type": "regular", "bootstrap_port": None, "a": 1}
        said = await at.http.post("/workers", json=sent)
        assert said.status_code == 200
        assert said.json()["ignored"] == ["a", "bootstrap_port"]
        (listed,) = (await at.http.get("/workers")).json()["workers"]
        assert listed["id"] == listed["worker_id"]
        assert (await at.http.delete(f"/workers/{listed['id']}")).status_code == 200
        again = await at.http.post("/workers", params={"url": process.url, "dp_rank": "0"})
        assert again.json()["ignored"] == ["dp_rank"]
        plain = await at.http.post("/workers", json={"url": process.url, "worker_type": None})
        assert "ignored" not in plain.json()

    run_router(test)


def test_is_healthy_says_what_calls_go_by(run_router: RunRouter) -> None:
    async def test(at: Deployment) -> None:
        process = await at.simulated()
        await at.register(process.url)
        for body, healthy in (({"is_dead": True}, False), ({"is_dead": False}, True)):
            said = await at.http.put(path_of(process.url), json=body)
            assert said.json()["worker"]["is_healthy"] is healthy

    run_router(test)


@pytest.mark.parametrize(
    ("info", "slots"),
    [
        ({"dp_size": 2, "batching_max_size": 4}, 8),
        ({"server_args": {"batching_max_size": 4}}, 4),
        ({"dp_size": 2, "server_args": {"batching_max_size": 4, "dp_size": 3}}, 8),
        ({"server_args": {"batching_max_size": 3, "dp_size": 2}}, 6),
        ({"batching_max_size": "4", "server_args": []}, 1),
        ({"batching_max_size": 0}, 1),
        ({"batching_max_size": True}, 1),
    ],
)
def test_slots_follow_the_batching_that_a_worker_tells(
    run_router: RunRouter, info: dict[str, Any], slots: int
) -> None:
    async def test(at: Deployment) -> None:
        script = await at.script(**{"/server_info": answer(200, info)})
        worker = (await at.http.post("/workers", json={"url": script.url})).json()["worker"]
        assert worker["max_concurrency"] == slots
        set_by_hand = await at.http.put(path_of(script.url), json={"max_concurrency": 1})
        assert set_by_hand.json()["worker"]["max_concurrency"] == 1

    run_router(test)


BAD_REQUESTS: list[tuple[dict[str, Any], str, str]] = [
    ({}, "missing_field", "worker_url is required"),
    ({"json": {}}, "missing_field", "worker_url is required"),
    ({"json": {"url": None}}, "missing_field", "worker_url is required"),
    ({"json": {"url": ""}}, "bad_worker_url", "empty"),
    ({"json": {"url": 8000}}, "invalid_field", "must be a string"),
    ({"json": {"url": {"a": 1}}}, "invalid_field", "must be a string"),
    ({"json": ["http://w"]}, "invalid_json", "must be a JSON object"),
    ({"content": b"{"}, "invalid_json", "Invalid JSON"),
    ({"content": b"url=http://w"}, "invalid_json", "Invalid JSON"),
    ({"content": b"\xff\xff"}, "invalid_json", "Invalid JSON"),
    ({"content": b"[" * 100_000}, "invalid_json", "Invalid JSON"),
    ({"json": {"urll": "http://w"}}, "missing_field", "worker_url is required"),
    ({"json": {"url": "http://w", "worker_type": "prefill"}}, "invalid_field", "must be regular"),
    ({"json": {"url": "http://w", "worker_type": ["decode"]}}, "invalid_field", "must be regular"),
    ({"params": {"url": "http://w", "worker_type": "decode"}}, "invalid_field", "must be regular"),
    ({"params": {"url": "http://w", "max_concurrency": "0"}}, "invalid_field", "max_concurrency"),
    ({"params": {"url": "http://w", "max_concurrency": "two"}}, "invalid_field", "max_concurrency"),
    ({"json": {"url": "http://w", "max_concurrency": 0}}, "invalid_field", "max_concurrency"),
    ({"json": {"url": "http://w", "max_concurrency": True}}, "invalid_field", "max_concurrency"),
    ({"json": {"url": "http://w", "max_concurrency": "2"}}, "invalid_field", "max_concurrency"),
    ({"json": {"url": "http://w", "max_concurrency": 1e9}}, "invalid_field", "max_concurrency"),
    ({"json": {"url": "w:8000"}}, "bad_worker_url", "did you mean http://w:8000"),
    ({"json": {"url": "ftp://w"}}, "bad_worker_url", "only http and https"),
    ({"json": {"url": "http://w/path"}}, "bad_worker_url", "path"),
    ({"json": {"url": "http://w?a"}}, "bad_worker_url", "query"),
    ({"content": b'{"url": "http://w\\ud800"}'}, "bad_worker_url", "not a valid name"),
    ({"json": {"url": "http://169.254.169.254"}}, "bad_worker_url", "blocked"),
    ({"params": {"url": "http://0xa9fea9fe."}}, "bad_worker_url", "blocked"),
    ({"params": {"url": "http://[::ffff:a9fe:a9fe]"}}, "bad_worker_url", "blocked"),
    ({"params": {"worker_url": "http://metadata.google.internal"}}, "bad_worker_url", "blocked"),
    ({"params": {"url": ["http://w:1", "http://w:2"]}}, "invalid_field", "Two different"),
    ({"params": {"url": "http://w:1", "worker_url": "http://w:2"}}, "invalid_field", "Two diff"),
    ({"params": {"url": "http://w:1"}, "json": {"url": "http://w:2"}}, "invalid_field", "Two diff"),
]


def test_bad_registrations(run_router: RunRouter) -> None:
    async def test(at: Deployment) -> None:
        for request, code, says in BAD_REQUESTS:
            body = refused(await at.http.post("/workers", **request), 400, code)
            assert says in body["error"], request
        secret = await at.http.post("/workers", json={"url": "http://u:hunter2@w"})
        refused(secret, 400, "bad_worker_url")
        assert "hunter2" not in secret.text
        huge = await at.http.post("/workers", content=b" " * (1024 * 1024 + 1))
        refused(huge, 413, "request_too_large")
        assert (await at.http.get("/workers")).json() == {"workers": [], "total": 0}

    run_router(test)


def test_a_worker_that_does_not_serve_yet_is_registered_and_said_so(
    run_router: RunRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_workers, "FIRST_CONTACT", 0.2)

    async def test(at: Deployment) -> None:
        gone = await at.script()
        gone.refuse()
        said = (await at.http.post("/workers", json={"url": gone.url})).json()
        assert said["message"] == (
            "The worker does not serve yet: GET /health failed: connection refused;"
            " it is probed further"
        )
        assert (said["worker"]["routable"], said["worker"]["reasons"]) == (
            False,
            ["not_probed_yet"],
        )
        mute = await at.script(**{"/health": never})
        said = (await at.http.post("/workers", json={"url": mute.url})).json()
        assert said["message"] == "The worker has not answered within 0.2 s; it is probed further"

    run_router(test, health_check_interval=600)


def test_a_removal_ends_the_wait_for_first_contact(run_router: RunRouter) -> None:
    async def test(at: Deployment) -> None:
        mute = await at.script(**{"/health": never})
        said: list[httpx.Response] = []

        async def post() -> None:
            said.append(await at.http.post("/workers", json={"url": mute.url}))

        with fail_after(2):  # it would be three seconds
            async with trio.open_nursery() as nursery:
                nursery.start_soon(post)
                await until(lambda: "GET /health" in mute.asked)
                assert (await at.http.delete(path_of(mute.url))).status_code == 200
        assert said[0].json()["message"] == "The worker was removed meanwhile"
        assert said[0].json()["worker"]["reasons"] == ["removed", "not_probed_yet"]

    run_router(test)


# GET /workers


def test_ids_in_all_the_forms_in_which_they_arrive(run_router: RunRouter) -> None:
    async def test(at: Deployment) -> None:
        process = await at.simulated()
        await at.register(process.url)
        merged = process.url.replace("//", "/")
        forms = [quote(process.url, safe=""), process.url, merged, process.url + "/", merged + "/"]
        forms += [quote(process.url, safe=":"), quote(merged, safe=""), quote(forms[0], safe="")]
        for form in forms:
            response = await at.http.get(f"/workers/{form}")
            assert response.status_code == 200, form
            assert response.json()["worker"]["url"] == process.url
            assert (await at.http.put(f"/workers/{form}", json={"is_dead": False})).is_success
        unknown = refused(await at.http.get(path_of("http://other:1")), 404, "unknown_worker")
        assert unknown["error"] == "No worker is registered at http://other:1"
        unknown = refused(await at.http.get("/workers/what"), 404, "unknown_worker")
        assert unknown["error"] == "No worker is called 'what'"
        refused(await at.http.get("/workers/a%0Ab"), 404, "not_found")
        refused(await at.http.get(path_of("http://169.254.169.254")), 400, "bad_worker_url")
        for form in forms:
            assert (await at.http.delete(f"/workers/{form}")).status_code == 200
            await at.register(process.url)

    run_router(test)


def test_every_name_of_a_worker_is_taken_everywhere(run_router: RunRouter) -> None:
    """One resolver: paths, `?workers=`, bodies, and `/remove_worker`."""

    async def test(at: Deployment) -> None:
        process = await at.simulated()
        registry = at.running.parts.registry
        where = process.url.removeprefix("http://")
        forms = [quote(process.url, safe=""), process.url, where, where.replace("0.0.1", "1")]
        for form in [*forms, "Picture-0"]:
            await at.register(process.url)
            registry.get(process.url).label = "Picture-0"  # as a launcher says
            shown = await at.http.get(f"/workers/{quote(form, safe='')}")
            assert shown.json()["worker"]["url"] == process.url, form
            assert shown.json()["worker"]["name"] == "Picture-0"
            logs = await at.http.get(f"/workers/{quote(form, safe='')}/logs")
            assert logs.json()["code"] == "not_launched"
            restart = await at.http.post(f"/workers/{quote(form, safe='')}/restart")
            assert restart.json()["code"] == "not_launched"
            asked = await at.http.get("/v1/list_loras", params={"workers": form})
            assert len(asked.json()["results"]) == 1, form
            synced = await at.http.post("/weights/sync", json={"workers": [form, process.url]})
            assert len(synced.json()["workers"]) == 1
            begun = await at.http.post("/weights/begin", json={"workers": [form]})
            aborted = await at.http.post(
                "/weights/abort", json={"txn": begun.json()["txn"], "touched": [form]}
            )
            assert len(aborted.json()["unknown"]) == 1
            removed = await at.http.post("/remove_worker", json={"url": form})
            assert removed.json()["url"] == process.url, form
            assert len(registry) == 0

    run_router(test)


def test_a_name_that_may_mean_two_workers_is_refused(run_router: RunRouter) -> None:
    async def test(at: Deployment) -> None:
        where = "127.0.0.1:1"  # nobody is there who could show that both are one
        for scheme in ("http", "https"):
            await at.http.post("/workers", json={"url": f"{scheme}://{where}"})
        said = refused(await at.http.get(f"/workers/{where}"), 400, "ambiguous_worker")
        assert said["workers"] == [quote(f"{s}://{where}", safe="") for s in ("http", "https")]
        removed = await at.http.post("/remove_worker", params={"url": where})
        refused(removed, 400, "ambiguous_worker")
        assert (await at.http.get("/workers")).json()["total"] == 2

    run_router(test)


def test_removing_twice_succeeds_twice(run_router: RunRouter) -> None:
    async def test(at: Deployment) -> None:
        process = await at.simulated()
        added = await at.http.post(
            "/add_worker", params={"url": process.url, "max_concurrency": "3"}
        )
        assert added.json()["worker"]["max_concurrency"] == 3
        added = await at.http.post("/add_worker", json={"url": process.url, "max_concurrency": 4})
        assert added.json()["worker"]["max_concurrency"] == 4
        for says in ("worker_id", "message"):
            removed = await at.http.post("/remove_worker", params={"url": process.url})
            assert removed.status_code == 200
            assert says in removed.json()
        refused(await at.http.delete(path_of(process.url)), 404, "unknown_worker")

    run_router(test)


def test_the_list_is_in_order_of_registration(run_router: RunRouter) -> None:
    async def test(at: Deployment) -> None:
        urls = [(await at.simulated()).url for _ in range(3)]
        for url in urls:
            await at.register(url)
        answer = await at.http.get("/workers")
        listed = answer.json()
        assert answer.text.endswith("}\n")
        assert [*listed["workers"][0]][:4] == ["url", "name", "routable", "reasons"]
        assert listed["total"] == 3
        assert [worker["url"] for worker in listed["workers"]] == urls
        assert (await at.http.get("/workers/")).json() == listed

    run_router(test)


# PUT /workers/{worker_id}


def test_a_dead_worker_and_its_resurrection(run_router: RunRouter) -> None:
    async def test(at: Deployment) -> None:
        process = await at.simulated()
        await at.register(process.url)
        said = (await at.http.put(path_of(process.url), json={"is_dead": True})).json()
        assert said["status"] == "success"
        worker = said["worker"]
        assert (worker["is_dead"], worker["routable"]) == (True, False)
        assert worker["reasons"] == ["quarantined"]
        refused(await at.image(), 503, "no_routable_worker")
        said = (await at.http.put(path_of(process.url), json={"is_dead": False})).json()
        assert (said["worker"]["is_dead"], said["worker"]["routable"]) == (False, True)
        assert (await at.image()).status_code == 200

    run_router(test)


def test_an_unhealthy_worker_is_looked_at_before_the_answer(run_router: RunRouter) -> None:
    async def test(at: Deployment) -> None:
        script = await at.script(**{"/health": answer(500)})
        await at.http.post("/workers", json={"url": script.url})
        worker = at.running.parts.registry.get(script.url)
        await until(lambda: worker.health is Health.UNHEALTHY)
        assert (await at.http.get(path_of(script.url))).json()["worker"]["is_dead"] is True
        script.answers["/health"] = DEFAULTS["/health"]
        said = (await at.http.put(path_of(script.url), json={"is_dead": False})).json()
        assert (said["worker"]["health"], said["worker"]["routable"]) == ("healthy", True)

    # Only the wish brings the probe: by itself it would come after a second at the earliest.
    run_router(test, health_check_interval=600, health_check_failure_threshold=1)


def test_draining_and_back(run_router: RunRouter) -> None:
    async def test(at: Deployment) -> None:
        process = await at.simulated()
        await at.register(process.url)
        path = path_of(process.url)
        said = (await at.http.put(path, json={"draining": True})).json()["worker"]
        assert (said["admin"], said["is_dead"], said["reasons"]) == (
            "draining",
            False,
            ["draining"],
        )
        refused(await at.image(), 503, "no_routable_worker")
        # Clearing a death that is not there must not end a drain.
        said = (await at.http.put(path, json={"is_dead": False})).json()["worker"]
        assert said["admin"] == "draining"
        said = (await at.http.put(path, json={"draining": False})).json()["worker"]
        assert (said["admin"], said["routable"]) == ("enabled", True)
        assert (await at.image()).status_code == 200

    run_router(test)


def test_slots_can_be_set_and_reset(run_router: RunRouter) -> None:
    async def test(at: Deployment) -> None:
        process = await at.simulated(dp_size=2)
        await at.register(process.url)
        for wish, slots in ((5, 5), (None, 2)):
            response = await at.http.put(path_of(process.url), json={"max_concurrency": wish})
            assert response.json()["worker"]["max_concurrency"] == slots

    run_router(test)


def test_capabilities_are_read_again_on_request(run_router: RunRouter) -> None:
    async def test(at: Deployment) -> None:
        script = await at.script()
        await at.register(script.url)
        script.answers["/model_info"] = answer(200, {"task_type": "T2V"})
        path = path_of(script.url)
        assert (await at.http.get(path)).json()["worker"]["video_support"] is False
        unchanged = await at.http.put(path, json={"refresh_video_support": False})
        assert unchanged.json()["worker"]["video_support"] is False
        said = await at.http.put(path, json={"refresh_video_support": True})
        assert said.json()["worker"]["video_support"] is True

    run_router(test, health_check_interval=600)


BAD_CHANGES: list[tuple[Any, int, str, str]] = [
    ({}, 400, "missing_field", "At least one field is required: is_dead"),
    ({"is_ded": True}, 400, "unsupported_fields", "Unsupported fields: is_ded"),
    ({"b": 1, "a": 1}, 400, "unsupported_fields", "Unsupported fields: a, b"),
    ([True], 400, "invalid_json", "must be a JSON object"),
    ({"is_dead": "true"}, 400, "invalid_field", "is_dead must be a boolean"),
    ({"is_dead": None}, 400, "invalid_field", "is_dead must be a boolean"),
    ({"is_dead": 1}, 400, "invalid_field", "is_dead must be a boolean"),
    ({"draining": "yes"}, 400, "invalid_field", "draining must be a boolean"),
    ({"refresh_video_support": 0}, 400, "invalid_field", "must be a boolean"),
    ({"max_concurrency": -1}, 400, "invalid_field", "max_concurrency must be"),
    ({"max_concurrency": 1.5}, 400, "invalid_field", "max_concurrency must be"),
    ({"is_dead": True, "draining": True}, 400, "invalid_field", "cannot be set at once"),
    ({"is_dead": True, "draining": False}, 400, "invalid_field", "cannot be set at once"),
    # All or nothing.
    ({"is_dead": True, "max_concurrency": 0}, 400, "invalid_field", "max_concurrency must be"),
    ({"max_concurrency": 4, "draining": 1}, 400, "invalid_field", "draining must be"),
]


def test_bad_changes_change_nothing(run_router: RunRouter) -> None:
    async def test(at: Deployment) -> None:
        process = await at.simulated()
        await at.register(process.url)
        path = path_of(process.url)
        before = (await at.http.get(path)).json()
        for change, status, code, says in BAD_CHANGES:
            body = refused(await at.http.put(path, json=change), status, code)
            assert says in body["error"]
        assert (await at.http.get(path)).json() == before
        await at.http.put(path, json={"is_dead": True})
        conflict = await at.http.put(path, json={"draining": True, "max_concurrency": 9})
        body = refused(conflict, 409, "illegal_transition")
        assert body["error"] == "A worker that is quarantined cannot drain"
        assert (await at.http.get(path)).json()["worker"]["max_concurrency"] == 1
        refused(
            await at.http.put(path_of("http://other:1"), json={"is_dead": True}),
            404,
            "unknown_worker",
        )

    run_router(test)


def test_a_worker_that_is_removed_while_the_change_arrives(run_router: RunRouter) -> None:
    async def test(at: Deployment) -> None:
        process = await at.simulated()
        await at.register(process.url)
        begun, go_on = trio.Event(), trio.Event()

        async def body() -> Any:
            yield b'{"is_dead": '
            begun.set()
            await go_on.wait()
            yield b"true}"

        async def change() -> None:
            response = await at.http.put(path_of(process.url), content=body())
            refused(response, 404, "unknown_worker")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(change)
            await begun.wait()
            await trio.sleep(0.05)  # the first half of the body arrives
            assert (await at.http.delete(path_of(process.url))).status_code == 200
            go_on.set()

    run_router(test)


# DELETE /workers/{worker_id}


def test_a_removed_worker_is_gone(run_router: RunRouter) -> None:
    async def test(at: Deployment) -> None:
        process = await at.simulated()
        await at.register(process.url)
        response = await at.http.delete(path_of(process.url))
        assert response.json() == {
            "status": "success",
            "worker_id": quote(process.url, safe=""),
        }
        refused(await at.http.delete(path_of(process.url)), 404, "unknown_worker")
        refused(await at.http.get(path_of(process.url)), 404, "unknown_worker")
        refused(await at.image(), 503, "no_workers")
        await at.register(process.url)
        assert (await at.image()).status_code == 200

    run_router(test)


class Busy:
    """A worker with one generation that ends when it is told to."""

    def __init__(self, at: Deployment, script: ScriptedWorker) -> None:
        self.at, self.script = at, script
        self.gate = trio.Event()
        self.answers: list[httpx.Response] = []

    @classmethod
    async def start(cls, at: Deployment, nursery: trio.Nursery) -> Busy:
        busy = cls(at, await at.script())
        busy.script.answers[IMAGES] = when(busy.gate, DEFAULTS[IMAGES])
        await at.register(busy.script.url)
        nursery.start_soon(busy.generate)
        await until(lambda: busy.generations)
        return busy

    async def generate(self) -> None:
        self.answers.append(await self.at.image())

    @property
    def generations(self) -> int:
        return self.script.asked.count(f"POST {IMAGES}")

    @property
    def path(self) -> str:
        return path_of(self.script.url)

    def facts(self) -> tuple[str, int]:
        worker = self.at.running.parts.registry.get(self.script.url)
        return worker.admin, worker.active_requests

    def registered(self) -> bool:
        return self.at.running.parts.registry.find(self.script.url) is not None


def test_a_plain_removal_lets_what_is_in_flight_end(run_router: RunRouter) -> None:
    async def test(at: Deployment) -> None:
        async with trio.open_nursery() as nursery:
            busy = await Busy.start(at, nursery)
            assert (await at.http.delete(busy.path)).status_code == 200
            assert not busy.registered()
            busy.gate.set()
        assert [response.status_code for response in busy.answers] == [200]

    run_router(test)


def test_a_drain_waits_for_what_is_in_flight_and_gives_nothing_new(run_router: RunRouter) -> None:
    async def test(at: Deployment) -> None:
        async with trio.open_nursery() as nursery:
            busy = await Busy.start(at, nursery)
            ends: list[int] = []

            async def drain() -> None:
                response = await at.http.delete(busy.path, params={"drain": "true"})
                ends.append(response.status_code)

            nursery.start_soon(drain)
            await until(lambda: busy.facts()[0] == "draining")
            nursery.start_soon(drain)  # somebody else wants the same
            refused(await at.image(), 503, "no_routable_worker")
            assert (ends, busy.generations, busy.facts()[1]) == ([], 1, 1)
            busy.gate.set()
        assert ends == [200, 200]
        assert busy.answers[0].status_code == 200
        assert not busy.registered()

    run_router(test)


def test_a_drain_of_an_idle_or_dead_worker_is_over_at_once(run_router: RunRouter) -> None:
    async def test(at: Deployment) -> None:
        for dead in (False, True):
            process = await at.simulated()
            await at.register(process.url)
            if dead:
                await at.http.put(path_of(process.url), json={"is_dead": True})
            for drain in ("maybe", "2"):
                refused(
                    await at.http.delete(path_of(process.url), params={"drain": drain}),
                    400,
                    "invalid_field",
                )
            assert (await at.http.delete(path_of(process.url) + "?drain")).status_code == 200
        assert (await at.http.get("/workers")).json()["total"] == 0

    run_router(test)


def test_a_drain_goes_on_though_its_client_left(run_router: RunRouter) -> None:
    async def test(at: Deployment) -> None:
        async with trio.open_nursery() as nursery:
            busy = await Busy.start(at, nursery)
            with pytest.raises(httpx.ReadTimeout):
                await at.http.delete(busy.path, params={"drain": "true"}, timeout=0.2)
            assert busy.facts() == ("draining", 1)
            busy.gate.set()
            await until(lambda: not busy.registered())

    run_router(test)


@pytest.mark.parametrize("how", ["undrained", "registered again"])
def test_a_removal_is_called_off_by_who_wants_the_worker_back(
    run_router: RunRouter, how: str
) -> None:
    async def test(at: Deployment) -> None:
        async with trio.open_nursery() as nursery:
            busy = await Busy.start(at, nursery)

            async def drain() -> None:
                response = await at.http.delete(busy.path, params={"drain": "true"})
                refused(response, 409, "removal_called_off")

            async with trio.open_nursery() as waiting:
                waiting.start_soon(drain)
                waiting.start_soon(drain)
                await until(lambda: busy.facts()[0] == "draining")
                if how == "undrained":
                    said = await at.http.put(busy.path, json={"draining": False})
                else:
                    said = await at.http.post("/workers", json={"url": busy.script.url})
                assert said.json()["worker"]["admin"] == "enabled"
            busy.gate.set()
        assert busy.registered()
        assert (await at.image()).status_code == 200
        # And it can be meant again.
        assert (await at.http.delete(busy.path, params={"drain": "true"})).status_code == 200
        assert not busy.registered()

    run_router(test)


def test_who_waits_for_a_drain_is_told_of_a_removal_at_once(run_router: RunRouter) -> None:
    async def test(at: Deployment) -> None:
        async with trio.open_nursery() as nursery:
            busy = await Busy.start(at, nursery)

            async with trio.open_nursery() as waiting:

                async def drain() -> None:
                    response = await at.http.delete(busy.path, params={"drain": "true"})
                    assert response.status_code == 200

                waiting.start_soon(drain)
                await until(lambda: busy.facts()[0] == "draining")
                assert (await at.http.delete(busy.path)).status_code == 200
            assert busy.answers == []
            new = await at.register(busy.script.url)  # the same address, another registration
            busy.gate.set()
            await until(lambda: busy.answers)
            assert not new.removed

    run_router(test)


# /health, /live, /ready


def test_health_says_whether_a_request_would_be_served(run_router: RunRouter) -> None:
    async def test(at: Deployment) -> None:
        async def health(status: int, **expected: Any) -> None:
            for path in ("/health", "/ready", "/health/"):
                response = await at.http.get(path)
                assert response.status_code == status
                assert response.json() == {
                    "status": "healthy" if status == 200 else "unhealthy",
                    "healthy_workers": 0,
                    "total_workers": 0,
                    "dead_workers": 0,
                    "sleeping_workers": 0,
                    "workers_on_trial": 0,
                    "contained_errors": boundary.counts.total(),
                    "state": "none",
                    **expected,
                }
                head = await at.http.head(path)
                assert (head.status_code, head.content) == (status, b"")
            live = await at.http.get("/live")
            assert (live.status_code, live.json()) == (200, {"status": "ok"})

        await health(503)
        one, two = await at.simulated(), await at.simulated()
        await at.register(one.url)
        await health(200, healthy_workers=1, total_workers=1)
        await at.register(two.url)
        await health(200, healthy_workers=2, total_workers=2)
        await at.http.put(path_of(one.url), json={"is_dead": True})
        await health(200, healthy_workers=1, total_workers=2, dead_workers=1)
        await at.http.post("/release_memory_occupation")  # one will be dead and asleep: dead
        await health(503, total_workers=2, dead_workers=1, sleeping_workers=1)
        refused(await at.image(), 503, "pool_asleep")
        await at.http.post("/resume_memory_occupation", params={"workers": two.url})
        await at.http.put(path_of(two.url), json={"draining": True})
        await health(503, total_workers=2, dead_workers=1)

    run_router(test)


# All answers


def test_wrong_methods_of_our_own_paths(run_router: RunRouter) -> None:
    async def test(at: Deployment) -> None:
        process = await at.simulated()
        await at.register(process.url)
        for method, path, allowed in (
            ("PATCH", "/workers", {"GET", "HEAD", "OPTIONS", "POST"}),
            ("POST", path_of(process.url), {"GET", "HEAD", "OPTIONS", "PUT", "DELETE"}),
            ("POST", "/health", {"GET", "HEAD", "OPTIONS"}),
            ("DELETE", "/live", {"GET", "HEAD", "OPTIONS"}),
        ):
            response = await at.http.request(method, path)
            body = refused(response, 405, "method_not_allowed")
            assert body["error"].startswith(f"{method} ")
            assert set(response.headers["allow"].split(", ")) == allowed
        head = await at.http.head(path_of("http://other:1"))
        assert (head.status_code, head.content) == (404, b"")

    run_router(test)


def test_every_answer_has_the_name_of_its_request(run_router: RunRouter) -> None:
    async def test(at: Deployment) -> None:
        process = await at.simulated()
        await at.register(process.url)
        paths = ["/live", "/workers", "/workers/what", "/v1/list_loras", "/no/such/path", "/health"]
        names = set()
        for path in paths:
            given = await at.http.get(path, headers={"X-Request-Id": "mine-1"})
            assert given.headers.get_list("x-request-id") == ["mine-1"], path
            made = await at.http.get(path)
            names.add(made.headers["x-request-id"])
        assert len(names) == len(paths)
        assert all(len(name) >= 16 for name in names)
        for bad in (b"has space", b"x" * 129, "caf\u00e9".encode()):
            made = await at.http.get("/live", headers=[(b"X-Request-Id", bad)])
            assert made.headers["x-request-id"] != bad.decode()
            assert len(made.headers["x-request-id"]) == 32

    run_router(test)


def test_static_workers_are_there_from_the_start(run_router: RunRouter) -> None:
    async def test(at: Deployment) -> None:
        listed = (await at.http.get("/workers")).json()["workers"]
        assert [(worker["url"], worker["origin"]) for worker in listed] == [
            ("http://127.0.0.1:9", "static")
        ]

    run_router(test, worker_urls=("HTTP://127.1:9/",))
