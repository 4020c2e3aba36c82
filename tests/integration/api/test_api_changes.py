"""Changes of weights and LoRA on all workers of a model, and questions about them."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import trio

from router.pool.worker import Origin
from tests.integration.api.pools import (
    IMAGES,
    VIDEOS,
    Member,
    RunPool,
    direct_to,
    is_ours,
)
from tests.integration.deployment import Deployment, until

OTHER = {"model_path": "image/other"}
DISK, SET = "/update_weights_from_disk", "/v1/set_lora"
LORA = {"lora_nickname": "ink", "lora_path": "loras/ink"}

CHANGES: dict[str, Any] = {
    "/update_weights_from_disk": {"model_path": "image/v2"},
    "/update_weights_from_tensor": {"serialized_named_tensors": ["eyJhIjogIjEifQ=="]},
    "/v1/set_lora": LORA,
    "/v1/merge_lora_weights": {"target": "all"},
    "/v1/unmerge_lora_weights": {},
}


def ok(answer: httpx.Response, *members: Member) -> list[Any]:
    """The bodies of the rows of a change that succeeded on these workers."""
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["success"] is True
    assert [row["worker_url"] for row in body["results"]] == [member.url for member in members]
    assert {row["status_code"] for row in body["results"]} == {200}
    return [row["body"] for row in body["results"]]


def untouched(path: str, *members: Member) -> bool:
    return not any(member.asked("POST", path) for member in members)


@pytest.mark.parametrize("path", CHANGES)
def test_everybody_gets_the_same_bytes(run_pool: RunPool, path: str) -> None:
    async def test(pool: Deployment, *members: Member) -> None:
        if "merge" in path:
            ok(await pool.http.post("/v1/set_lora", json=LORA), *members)
        if "unmerge" in path:
            ok(await pool.http.post("/v1/merge_lora_weights", json={}), *members)
        body = httpx.Request("POST", "http://x", json=CHANGES[path]).content + b" \n"
        headers = {"content-type": "application/json", "x-request-id": "change-1"}
        answer = await pool.http.post(path, content=body, headers=headers)
        rows = ok(answer, *members)
        assert all(row.get("success") or row.get("status") == "ok" for row in rows)
        assert answer.json()["deferred"] == []
        digests = set()
        for member in members:
            [entry] = member.asked("POST", path)[-1:]
            assert (entry.body_bytes, entry.request_id) == (len(body), "change-1")
            digests.add(entry.body_sha256)
        assert len(digests) == 1

    run_pool(test, IMAGES, IMAGES, IMAGES)


def test_a_change_goes_to_all_at_once(run_pool: RunPool) -> None:
    async def test(pool: Deployment, *members: Member) -> None:
        for member in members:
            member.sim.faults.add("delay", path="/update_weights", by=0.5)
        ok(await pool.http.post("/update_weights_from_disk", json={"model_path": "v2"}), *members)
        asked = [entry for member in members for entry in member.asked("POST", DISK)]
        assert len(asked) == len(members)
        assert max(entry.start for entry in asked) < min(entry.end for entry in asked)

    run_pool(test, IMAGES, IMAGES, IMAGES, IMAGES)


def test_several_models_want_a_name_and_nothing_is_touched(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member, c: Member) -> None:
        for path, content in CHANGES.items():
            body = is_ours(await pool.http.post(path, json=content), 400, "ambiguous_target")
            assert body["models"] == ["image/a", "image/other"]
            assert "image/a, image/other" in body["error"]
            assert untouched(path, a, b, c)

        path, content = "/update_weights_from_disk", {"model_path": "v2"}
        ok(await pool.http.post(path, json=content, params={"model": "image/a"}), a, c)
        assert untouched(path, b)
        both = {"workers": f"{b.id},{c.url}"}
        body = is_ours(
            await pool.http.post(path, json=content, params=both), 400, "ambiguous_target"
        )
        assert body["models"] == ["image/other", "image/a"]
        assert untouched(path, b)
        ok(await pool.http.post(path, json=content, params={"workers": b.url}), b)
        assert len(a.asked("POST", path)) == 1
        assert a.asked("POST", path)[0].target == path  # the query is the router's own

    run_pool(test, IMAGES, OTHER, IMAGES)


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ({"model": "nobodys"}, 404, "unknown_model"),
        ({"workers": "http://nobody:1"}, 404, "unknown_worker"),
        ({"workers": "not a url"}, 404, "unknown_worker"),
        ({"workers": ""}, 400, "invalid_field"),
    ],
)
@pytest.mark.parametrize("path", ["/update_weights_from_disk", "/update_weights_from_tensor"])
def test_targets_that_are_none(
    run_pool: RunPool, path: str, query: dict[str, str], status: int, code: str
) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        answer = await pool.http.post(path, json=CHANGES[path], params=query)
        assert answer.json()["code"] in (code, "bad_worker_url")
        assert answer.status_code in (status, 400)
        assert untouched(path, a)

    run_pool(test, IMAGES)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32-be"])
def test_a_change_is_kept_in_whatever_encoding_it_comes(run_pool: RunPool, encoding: str) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        body = '{"model_path": "image/v2"}'.encode(encoding)
        ok(await pool.http.post(DISK, content=body), a)
        (ledger,) = (await pool.http.get("/weights")).raise_for_status().json()["models"]
        assert [step["body"] for step in ledger["replay"]] == [{"model_path": "image/v2"}]
        ok(await pool.http.post(DISK, json={"model_path": "image/v3"}), a)

    run_pool(test, IMAGES)


def test_what_is_nested_so_deep_that_it_can_just_be_read_harms_nothing(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        for depth in range(930, 1000):  # around the limit of CPython 3.11
            nested = "[" * depth + "]" * depth + "}"
            body = '{"model_path": "image/v2", "nested": ' + nested
            await pool.http.post(DISK, content=body)
            assert (await pool.http.get("/weights")).status_code == 200
        ok(await pool.http.post(DISK, json={"model_path": "image/v3"}), a)

    run_pool(test, IMAGES)


@pytest.mark.parametrize("path", CHANGES)
@pytest.mark.parametrize("suffix", ["", "/"])
def test_bodies_that_nobody_should_get(run_pool: RunPool, path: str, suffix: str) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        needed = next(iter(CHANGES[path]), "target")
        bodies = [b"{", b"[]", b'"x"', b"null", b"7", b"\xff\xfe", b"[" * 100_000]
        if needed in ("model_path", "serialized_named_tensors", "lora_nickname"):
            bodies += [
                b"",
                b"{}",
                b'{"%s": null}' % needed.encode(),
                b'{"%s": ""}' % needed.encode(),
            ]
        for content in bodies:
            answer = await pool.http.post(path + suffix, content=content)
            assert answer.status_code == 400, content
            assert answer.json()["code"] in ("invalid_json", "missing_field")
        assert untouched(path, a)

    run_pool(test, IMAGES)


@pytest.mark.parametrize(
    ("path", "content", "told"),
    [
        (DISK, {"model_path": 7}, "model_path must be a text"),
        (DISK, {"model_path": True}, "model_path must be a text"),
        (DISK, {"model_path": ["a", "b"]}, "model_path must be a text"),
        (DISK, {"model_path": {"a": 1}}, "model_path must be a text"),
        (DISK, {"model_path": "a", "target_modules": 3}, "target_modules must be a list of texts"),
        (
            DISK,
            {"model_path": "a", "target_modules": [1]},
            "target_modules must be a list of texts",
        ),
        (SET, {"lora_nickname": 7}, "lora_nickname must be a text or a list of texts"),
        (SET, {"lora_nickname": ["a", 1]}, "lora_nickname must be a text or a list of texts"),
        (SET, {"lora_nickname": "a", "lora_path": 1}, "lora_path must be a text or a list of"),
    ],
)
def test_fields_of_a_wrong_type(
    run_pool: RunPool, path: str, content: dict[str, Any], told: str
) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        answer = await pool.http.post(path, json=content)
        assert told in is_ours(answer, 400, "invalid_field")["error"]
        assert untouched(path, a)

    run_pool(test, IMAGES)


def test_a_body_that_is_too_large_to_be_one(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        content = b'{"model_path": "' + b"x" * 2_000_000 + b'"}'
        answer = await pool.http.post("/update_weights_from_disk", content=content)
        is_ours(answer, 413, "request_too_large")

        async def chunks() -> Any:
            for i in range(0, len(content), 100_000):
                yield content[i : i + 100_000]

        answer = await pool.http.post("/v1/set_lora", content=chunks())
        is_ours(answer, 413, "request_too_large")
        assert untouched("/update_weights_from_disk", a)

    run_pool(test, IMAGES)


def test_some_fail(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member, c: Member) -> None:
        b.sim.faults.add("fail_next_update", status=400, message="no space")
        c.sim.faults.add("drop", path="/update_weights")
        answer = await pool.http.post("/update_weights_from_disk", json={"model_path": "v2"})
        assert answer.status_code == 502
        body = answer.json()
        assert body["success"] is False
        assert [(r["worker_url"], r["status_code"]) for r in body["results"]] == [
            (a.url, 200),
            (b.url, 400),
            (c.url, 502),
        ]
        assert body["results"][1]["body"] == {"success": False, "message": "no space"}
        assert body["results"][2]["body"]["code"] == "worker_failed"

    run_pool(test, IMAGES, IMAGES, IMAGES)


def test_all_refuse(run_pool: RunPool) -> None:
    async def test(pool: Deployment, *members: Member) -> None:
        content = {"model_path": "/nonexistent/x"}
        answer = await pool.http.post("/update_weights_from_disk", json=content)
        assert (answer.status_code, answer.json()["success"]) == (400, False)
        assert {row["status_code"] for row in answer.json()["results"]} == {400}

        answer = await pool.http.post("/v1/set_lora", json={"lora_nickname": 7})
        assert answer.status_code == 400  # they say 422

        for member in members:
            member.sim.faults.add("fail_next_update", path="/v1/merge", status=500)
        answer = await pool.http.post("/v1/merge_lora_weights", json={})
        assert answer.status_code == 502
        assert "detail" in answer.json()["results"][0]["body"]
        members[0].sim.faults.add("status", path="/update_weights", status=400)
        members[1].sim.faults.add("status", path="/update_weights", status=500)
        answer = await pool.http.post("/update_weights_from_disk", json={"model_path": "x"})
        assert answer.status_code == 502

    run_pool(test, IMAGES, IMAGES)


def test_a_failure_under_status_200(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        said = {"success": False, "message": "not really"}
        b.sim.faults.add("status", path="/update_weights", status=200, body=said)
        answer = await pool.http.post("/update_weights_from_disk", json={"model_path": "x"})
        assert (answer.status_code, answer.json()["success"]) == (502, False)
        assert answer.json()["results"][1] == {
            "worker_url": b.url,
            "status_code": 200,
            "success": False,
            "body": said,
        }

    run_pool(test, IMAGES, IMAGES)


def test_who_cannot_be_called_is_deferred(run_pool: RunPool) -> None:
    async def test(pool: Deployment, *members: Member) -> None:
        awake, asleep, quarantined, dead, draining = members
        await pool.http.post("/release_memory_occupation", params={"workers": asleep.id})
        await pool.http.put(f"/workers/{quarantined.id}", json={"is_dead": True})
        await pool.http.put(f"/workers/{draining.id}", json={"draining": True})
        dead.sim.kill()
        await until(lambda: dead.known.health == "unhealthy")
        answer = await pool.http.post("/update_weights_from_disk", json={"model_path": "v2"})
        ok(answer, awake, draining)
        assert answer.json()["deferred"] == [
            {"worker_url": m.url, "worker_id": m.id, "reasons": [reason, "weights_behind"]}
            for m, reason in (
                (asleep, "asleep"),
                (quarantined, "quarantined"),
                (dead, "unhealthy"),
            )
        ]
        assert untouched("/update_weights_from_disk", asleep, quarantined)

    run_pool(test, *[IMAGES] * 5)


def test_nobody_to_call(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        a.sim.faults.add("kill_scheduler")
        await until(lambda: a.known.health == "unhealthy")
        for path, content in CHANGES.items():
            body = is_ours(await pool.http.post(path, json=content), 503, "no_workers")
            assert body["error"] == "No healthy workers available in the pool"
        for path in ("/get_weights_checksum", "/release_memory_occupation"):
            is_ours(await pool.http.post(path, json={}), 503, "no_workers")
        await pool.http.delete(f"/workers/{a.id}")
        answer = await pool.http.post("/update_weights_from_disk", json={"model_path": "x"})
        is_ours(answer, 503, "no_workers")

    run_pool(test, IMAGES)


def test_a_worker_that_is_not_known_yet_is_deferred(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        script = await pool.script()
        script.refuse()
        pool.running.parts.registry.add(script.url, Origin.REGISTERED)
        answer = await pool.http.post("/update_weights_from_disk", json={"model_path": "x"})
        ok(answer, a)
        assert [row["worker_url"] for row in answer.json()["deferred"]] == [script.url]

    run_pool(test, IMAGES)


@pytest.mark.parametrize("path", ["/update_weights_from_disk", "/update_weights_from_tensor"])
def test_a_change_that_has_begun_outlives_its_client(run_pool: RunPool, path: str) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        before = a.sim.scheduler.weights.identity
        for member in (a, b):
            member.sim.faults.add("delay", path=path, by=0.3)
        with trio.move_on_after(0.15) as left:
            await pool.http.post(path, json=CHANGES[path])
        assert left.cancelled_caught
        await until(lambda: a.sim.scheduler.weights.identity != before)
        await until(lambda: b.sim.scheduler.weights.identity != before)
        for member in (a, b):
            await until(lambda m=member: m.asked("POST", path)[0].status == 200)
            assert member.asked("POST", path)[0].client_gone is None

    run_pool(test, IMAGES, IMAGES)


def test_changes_wait_for_generations(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        a.sim.faults.add("slow", factor=5000, count=1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.image)
            await until(lambda: a.sim.scheduler.running)
            ok(await pool.http.post("/update_weights_from_disk", json={"model_path": "v2"}), a)
        image, update = a.sim.log.work
        assert image.end is not None
        assert update.start is not None
        assert update.queued >= image.end  # in the router, not in the worker

    run_pool(test, IMAGES)


def test_a_question_ends_when_its_client_leaves(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        a.sim.faults.add("hang", path="/v1/list_loras")
        with trio.move_on_after(0.2) as left:
            await pool.http.get("/v1/list_loras")
        assert left.cancelled_caught
        await until(lambda: a.asked("GET", "/v1/list_loras")[0].client_gone)

    run_pool(test, IMAGES)


def test_a_call_that_is_never_answered(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        b.sim.faults.add("hang", path="/update_weights")
        answer = await pool.http.post("/update_weights_from_disk", json={"model_path": "x"})
        assert answer.status_code == 502
        assert [row["status_code"] for row in answer.json()["results"]] == [200, 504]
        assert answer.json()["results"][1]["body"]["code"] == "worker_timeout"

    run_pool(test, IMAGES, IMAGES, refit_timeout=0.5)


@pytest.mark.parametrize("path", [*CHANGES, "/release_memory_occupation", "/get_weights_checksum"])
def test_other_methods_reach_no_worker(run_pool: RunPool, path: str) -> None:
    """One of many workers must not get alone what all must get."""

    async def test(pool: Deployment, a: Member) -> None:
        for method in ("GET", "PUT", "DELETE"):
            answer = await pool.http.request(method, path)
            is_ours(answer, 405, "method_not_allowed")
            assert "POST" in answer.headers["allow"]
            assert a.asked(method, path) == []

    run_pool(test, IMAGES)


# Questions.


def test_workers_that_agree_and_that_do_not(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        path = "/get_weights_checksum"
        answer = await pool.http.post(path, json={"module_names": None})
        rows = ok(answer, a, b)
        assert rows[0] == rows[1]
        assert len(rows[0]["transformer"]) == 64
        assert answer.json()["consistent"] is True

        async with direct_to(a.url) as worker:  # past the router
            await worker.post("/update_weights_from_disk", json={"model_path": "v2"})
        answer = await pool.http.post(path, json={"module_names": None})
        ok(answer, a, b)
        assert answer.json()["consistent"] is False

        b.sim.faults.add("status", path=path, status=500, body="oops", content_type="text/plain")
        answer = await pool.http.post(path, json={})
        assert (answer.status_code, answer.json()["consistent"]) == (502, False)
        assert answer.json()["results"][1]["body"] == "oops"

    run_pool(test, IMAGES, IMAGES)


def test_loras_are_asked_of_all(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        answer = await pool.http.get("/v1/list_loras")
        ok(answer, a, b)
        assert answer.json()["consistent"] is True
        async with direct_to(a.url) as worker:  # past the router
            await worker.post("/v1/set_lora", json=LORA)
        answer = await pool.http.get("/v1/list_loras")
        rows = ok(answer, a, b)
        assert "ink" in str(rows[0])
        assert "ink" not in str(rows[1])
        assert answer.json()["consistent"] is False
        ok(await pool.http.post("/v1/set_lora", json=LORA, params={"workers": b.id}), b)
        assert (await pool.http.get("/v1/list_loras")).json()["consistent"] is True

    run_pool(test, IMAGES, IMAGES)


def test_the_tensor_check_is_asked_of_all(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        path = "/update_weights_from_tensor_checker"
        ok(await pool.http.post("/update_weights_from_tensor", json=PUSH), a, b)
        question = {"target_module": "transformer", "expected_named_tensors_sha256": {"a": "1"}}
        answer = await pool.http.post(path, json=question)
        ok(answer, a, b)
        assert answer.json()["consistent"] is True
        question["expected_named_tensors_sha256"] = {"a": "2"}
        answer = await pool.http.post(path, json=question)
        assert (answer.status_code, answer.json()["consistent"]) == (400, False)

    PUSH = CHANGES["/update_weights_from_tensor"]
    run_pool(test, IMAGES, IMAGES)


def test_questions_go_to_sleepers_and_to_all_models(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member, c: Member, d: Member) -> None:
        await pool.http.post("/release_memory_occupation", params={"workers": a.id})
        d.sim.faults.add("kill_scheduler")
        await until(lambda: d.known.health == "unhealthy")
        answer = await pool.http.get("/v1/list_loras")
        ok(answer, a, b, c)
        assert [row["worker_url"] for row in answer.json()["deferred"]] == [d.url]
        assert answer.json()["consistent"] is True
        answer = await pool.http.post("/get_weights_checksum", json={})
        rows = ok(answer, a, b, c)
        assert rows[0] == rows[1] != rows[2]
        assert answer.json()["consistent"] is True  # those of each model agree
        answer = await pool.http.post("/get_weights_checksum", json={}, params={"model": "video/b"})
        ok(answer, c)

    run_pool(test, IMAGES, IMAGES, VIDEOS, IMAGES)
