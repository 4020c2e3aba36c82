"""The live page and the events that it follows."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import h11
import trio

from router.pool.ids import worker_id
from router.web import feed as feeds
from router.web import live
from tests.integration.api.pools import IMAGES, VIDEOS, Member, is_ours, run_with_pool
from tests.integration.deployment import Deployment, run_deployed, until
from tests.patience import fail_after


class Viewer:
    """One client of /events, and the document as it has understood it."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream, self._http = stream, h11.Connection(h11.CLIENT)
        self._text = ""
        self.headers: dict[str, str] = {}
        self.document: dict[str, Any] = {}
        self.workers: dict[str, dict[str, Any]] = {}
        self.last_id = ""
        self.kinds: list[str] = []

    async def ask(self, headers: dict[str, str]) -> None:
        asked = h11.Request(
            method="GET", target="/events", headers=[("host", "x"), *headers.items()]
        )
        await self._stream.send_all(self._http.send(asked) + self._http.send(h11.EndOfMessage()))
        answer = await self._next()
        assert isinstance(answer, h11.Response)
        assert answer.status_code == 200
        self.headers = {k.decode(): v.decode() for k, v in answer.headers}

    async def _next(self) -> h11.Event:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self._stream.receive_some())
        assert isinstance(event, h11.Event)
        return event

    async def end(self) -> None:
        """Read to the end, which is clean."""
        while not isinstance(await self._next(), h11.EndOfMessage):
            pass

    async def event(self) -> dict[str, Any]:
        """The next event; comments count as empty ones."""
        while "\n\n" not in self._text:
            piece = await self._next()
            assert isinstance(piece, h11.Data)
            self._text += piece.data.decode()
        text, _, self._text = self._text.partition("\n\n")
        if text.startswith(":"):
            self.kinds.append("comment")
            return {}
        fields = dict(line.split(": ", 1) for line in text.splitlines())
        told: dict[str, Any] = json.loads(fields["data"])
        self.last_id = fields["id"]
        self.kinds.append(fields["event"])
        if fields["event"] == "snapshot":
            self.document = told
            self.workers = {each["worker_id"]: each for each in told["workers"]}
        else:
            self.document |= told
            for name, changed in told.get("workers", {}).items():
                if changed is None:
                    del self.workers[name]
                else:
                    self.workers[name] = {**self.workers.get(name, {}), **changed}
        return told

    async def until(self, condition: Any) -> None:
        """Follow until the condition holds for this viewer."""
        with fail_after(20):
            while not condition(self):
                await self.event()


@asynccontextmanager
async def viewing(pool: Deployment, **headers: str) -> AsyncIterator[Viewer]:
    async with await trio.open_tcp_stream("127.0.0.1", pool.running.port) as stream:
        viewer = Viewer(stream)
        await viewer.ask(headers)
        yield viewer


def without_moments(worker: dict[str, Any]) -> dict[str, Any]:
    """A worker without what goes on without an event."""
    work = [{k: v for k, v in one.items() if k != "began"} for one in worker["work"]]
    return {**worker, "outstanding_seconds": 0, "consecutive_failures": 0, "work": work}


def test_the_snapshot_says_what_the_endpoints_say() -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        assert (await pool.image(model=None)).status_code == 200
        async with viewing(pool) as viewer:
            told = await viewer.event()
            get = pool.http.get
            said = (await get("/workers")).json()["workers"]
            assert [*map(without_moments, told["workers"])] == [*map(without_moments, said)]
            assert told["queue"].keys() == (await get("/queue")).json().keys()
            assert told["health"] == (await get("/health")).json()
            models = (await get("/weights")).json()["models"]
            assert told["weights"] == [
                {k: v for k, v in model.items() if k != "workers"} for model in models
            ]
            assert viewer.headers["content-type"] == "text/event-stream"
            assert "prompt" not in json.dumps(told)

    run_with_pool(test, IMAGES, VIDEOS)


def test_changes_lead_to_what_the_endpoints_say() -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        async with viewing(pool) as viewer:
            await viewer.event()
            url = f"/workers/{worker_id(a.url)}"
            assert (await pool.http.put(url, json={"is_dead": True})).status_code == 200
            name = worker_id(a.url)
            await viewer.until(lambda v: v.workers[name]["admin"] == "quarantined")
            assert (await pool.http.put(url, json={"is_dead": False})).status_code == 200
            assert (await pool.image()).status_code == 200
            await viewer.until(lambda v: v.workers[name]["routable"])
            # All of them, once each: the image has ended, and is counted.
            await viewer.until(
                lambda v: (
                    sum(row[1] for row in v.document["series"]["steps"]) == 1
                    and not any(each["slots_in_use"] for each in v.workers.values())
                )
            )
            said = (await pool.http.get("/workers")).json()["workers"]
            for worker in said:
                mine = viewer.workers[worker["worker_id"]]
                assert without_moments(mine) == without_moments(worker)
            assert (await pool.http.delete(f"/workers/{worker_id(b.url)}")).status_code == 200
            await viewer.until(lambda v: worker_id(b.url) not in v.workers)
            assert viewer.kinds.count("snapshot") == 1
            assert "change" in viewer.kinds

    run_with_pool(test, IMAGES, IMAGES)


def test_work_a_refit_and_errors_are_told() -> None:
    async def test(pool: Deployment, a: Member) -> None:
        body = {"model_path": "demo/step-1"}
        async with viewing(pool) as viewer:
            await viewer.event()
            changed = await pool.http.post("/update_weights_from_disk", json=body)
            assert changed.status_code == 200
            await viewer.until(
                lambda v: [r["ended"] is not None for r in v.document["refits"]] == [True]
            )
            (refit,) = viewer.document["refits"]
            assert (refit["weight_version"], refit["workers"], refit["failed"]) == (1, 1, 0)
            assert viewer.document["weights"][0]["weight_version"] == 1
            quarantine = await pool.http.put(f"/workers/{worker_id(a.url)}", json={"is_dead": True})
            assert quarantine.status_code == 200
            assert (await pool.image()).status_code == 503
            await viewer.until(
                lambda v: sum(row[2] for row in v.document.get("series", {"steps": []})["steps"])
            )

    run_with_pool(test, IMAGES)


def test_a_viewer_that_returns_gets_what_it_missed_or_all() -> None:
    async def test(pool: Deployment, a: Member) -> None:
        async with viewing(pool) as one, viewing(pool) as other:
            await one.event()
            await other.event()
            feed = pool.running.parts.feed
            assert feed._viewers == 2
            place = one.last_id
            await other.until(lambda v: v.last_id != place)
            async with viewing(pool, **{"Last-Event-ID": place}) as back:
                back.workers = dict(one.workers)
                await back.event()
                assert back.kinds == ["change"]
            for unknown in ("x", "x.1", f"{place.partition('.')[0]}.99999"):
                async with viewing(pool, **{"Last-Event-ID": unknown}) as back:
                    await back.event()
                    assert back.kinds == ["snapshot"]
        await until(lambda: feed._viewers == 0)
        assert not feed._changes
        assert not feed._shown

    run_with_pool(test, IMAGES)


def test_a_slow_viewer_gets_all_anew(monkeypatch: Any) -> None:
    monkeypatch.setattr(feeds, "TICK", 0.02)
    monkeypatch.setattr(live, "TICK", 0.02)
    monkeypatch.setattr(feeds, "_KEPT", 2)

    async def test(pool: Deployment, a: Member) -> None:
        feed = pool.running.parts.feed
        with feed.viewing():
            feed.snapshot(lambda worker: {"worker_id": worker.worker_id}, {})
            place = feed.last
            for number in range(3):
                feed._due = 0.0
                feed.look(lambda worker: {}, lambda number=number: {"x": number})  # type: ignore[misc]
            assert feed.after(place) is None
            assert len(feed._changes) == 2
            assert feed.after(feed.last - 2) == list(feed._changes)
            assert feed.after(feed.last) == []

    run_with_pool(test, IMAGES)


def test_too_many_viewers_are_refused(monkeypatch: Any) -> None:
    monkeypatch.setattr(feeds, "MOST_VIEWERS", 1)

    async def test(pool: Deployment) -> None:
        async with viewing(pool) as viewer:
            await viewer.event()
            refused = await pool.http.get("/events")
            is_ours(refused, 503, "too_many_viewers")
            assert refused.headers["retry-after"]
        await until(lambda: pool.running.parts.feed._viewers == 0)
        async with viewing(pool) as viewer:
            await viewer.event()

    run_deployed(test)


def test_silence_is_broken_by_heartbeats(monkeypatch: Any) -> None:
    monkeypatch.setattr(live, "_HEARTBEAT", 0.05)

    async def test(pool: Deployment) -> None:
        async with viewing(pool) as viewer:
            await viewer.until(lambda v: "comment" in v.kinds)

    run_deployed(test)


def test_events_end_when_the_router_stops() -> None:
    async def test(pool: Deployment) -> None:
        async with viewing(pool) as viewer:
            await viewer.event()
            pool.running.parts.feed.over.set()
            with fail_after(20):
                await viewer.end()

    run_deployed(test)


def test_nothing_is_computed_without_a_viewer() -> None:
    async def test(pool: Deployment, a: Member) -> None:
        assert (await pool.image()).status_code == 200
        feed = pool.running.parts.feed
        assert not feed._touched
        assert not feed._shown

    run_with_pool(test, IMAGES)


def test_browsers_get_the_page_and_others_links() -> None:
    browser = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}

    async def test(pool: Deployment) -> None:
        links = (await pool.http.get("/")).json()
        assert links["dashboard"] == "/dashboard"
        for link in links.values():
            if link.startswith("/") and link not in ("/events", "/v1/models"):
                assert (await pool.http.get(link)).status_code in (200, 503), link
        page = await pool.http.get("/", headers=browser)
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        same = await pool.http.get("/dashboard/")
        assert same.content == page.content
        tag = {"if-none-match": page.headers["etag"]}
        assert (await pool.http.get("/dashboard", headers=tag)).status_code == 304
        assert "/*" not in re.findall(r"<style>(.{3})", page.text)
        is_ours(await pool.http.get("/favicon.ico"), 404, "unknown_path")
        is_ours(await pool.http.post("/dashboard"), 405, "method_not_allowed")
        assert (await pool.http.head("/events")).status_code == 200

    run_deployed(test)


def test_the_page_runs_nothing_but_its_own_script() -> None:
    async def test(pool: Deployment) -> None:
        page = await pool.http.get("/dashboard")
        policy = dict(
            part.split(" ", 1) for part in page.headers["content-security-policy"].split("; ")
        )
        assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
        for name, source in (("script", "script-src"), ("style", "style-src")):
            (text,) = re.findall(f"<{name}>(.*?)</{name}>", page.text, re.S)
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            assert policy[source] == f"'sha256-{digest}'"
        assert not re.findall(r"(?:src|href)=[\"']?(?:https?:)?//", page.text), (
            "an asset from outside"
        )
        assert not re.findall(r"\son\w+=|\sstyle=", page.text), "refused by the policy"
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert word not in page.text

    run_deployed(test)


def test_a_client_that_leaves_is_a_viewer_no_more() -> None:
    async def test(pool: Deployment, a: Member) -> None:
        feed = pool.running.parts.feed
        for _ in range(3):
            async with viewing(pool) as viewer:
                await viewer.event()
                assert feed._viewers == 1
            await until(lambda: feed._viewers == 0)
            await trio.lowlevel.checkpoint()

    run_with_pool(test, IMAGES)
