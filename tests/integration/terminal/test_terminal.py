"""Commands that ask a router, against one in this process."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from router import terminal
from router.errors import SettingsError, StartError
from router.terminal import actions, bench, flags, logs, reading
from router.terminal.client import NoKey, NoRouter, Refused, connected
from router.terminal.pool import Pool, follow
from tests.certificates import certificate, needed
from tests.integration.api.pools import IMAGES, VIDEOS, Member, run_with_pool
from tests.integration.deployment import Deployment, answer, run_deployed, until
from tests.patience import fail_after

Capture = pytest.CaptureFixture[str]


async def command(pool: Deployment | str, *line: str) -> int:
    """Run a command line; its exit status. Raises what `main` would tell."""
    name, *arguments = line
    url = pool if isinstance(pool, str) else pool.address
    settings, words = terminal.parse(name, [*arguments, "--url", url])
    match settings:
        case flags.Logs():
            return await logs.show(settings, words)
        case flags.Bench():
            return await bench.measure(settings)
        case flags.Reading() if name in ("status", "workers", "queue", "weights", "jobs"):
            return await reading.show(name, settings, words)
        case flags.Reading():
            return await actions.act(name, settings, words)
    raise AssertionError(name)


def rows(text: str) -> dict[str, str]:
    """Lines by their first word."""
    return {line.split()[0]: " ".join(line.split()[1:]) for line in text.splitlines() if line}


def test_tables_say_what_the_router_says(capsys: Capture) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        assert (await pool.image(model="image/a")).is_success
        told: dict[str, str] = {}
        for name in ("status", "workers", "queue", "weights", "jobs"):
            assert await command(pool, name) == 0
            told[name] = capsys.readouterr().out
            assert await command(pool, name, "--json") == 0
            document = json.loads(capsys.readouterr().out)
            if name in ("workers", "queue", "weights"):
                said = (await pool.http.get(f"/{name}")).json()
                assert document.keys() == said.keys()
        assert rows(told["status"])["workers"] == "2 of 2 ready"
        workers = rows(told["workers"])
        assert workers[a.known.name].startswith("ready 0/1")
        assert workers[b.known.name].endswith("video/b")
        assert told["queue"].startswith("0 waiting")
        assert "image/a" in told["weights"]
        assert told["jobs"] == "no jobs\n"

    run_with_pool(test, IMAGES, VIDEOS)


def test_one_worker_and_jobs(capsys: Capture) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        job = (await pool.http.post("/v1/videos", json={"prompt": "x", "size": "64x64"})).json()
        assert await command(pool, "workers", a.known.name) == 0
        assert rows(capsys.readouterr().out)["url"] == a.url
        assert await command(pool, "jobs", "-n", "1") == 0
        assert job["id"] in capsys.readouterr().out
        with pytest.raises(Refused, match=r"nobody.*unknown_worker"):
            await command(pool, "workers", "nobody")

    run_with_pool(test, VIDEOS)


def test_status_is_1_if_the_router_is_not_ready(capsys: Capture) -> None:
    async def test(pool: Deployment) -> None:
        assert await command(pool, "status") == 1
        assert rows(capsys.readouterr().out)["ready"] == "no"
        assert await command(pool, "workers") == 0
        assert capsys.readouterr().out == "no workers\n"

    run_deployed(test)


def test_actions_have_a_row_for_each_worker(capsys: Capture) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        one, other = a.known.name, b.known.name

        async def done(*line: str) -> dict[str, str]:
            assert await command(pool, *line) == 0, capsys.readouterr()
            return rows(capsys.readouterr().out)

        assert (await done("quarantine", one, other))[one].startswith("quarantined")
        assert {a.known.admin, b.known.admin} == {"quarantined"}
        assert (await done("recover", one, other))[other].startswith("recovered")
        assert (await done("drain", one)) == {one: "drained"}
        assert a.known.admin == "draining"
        assert (await done("undrain", one)) == {one: "enabled"}
        assert (await done("sleep", other)) == {other: "asleep"}
        assert b.known.is_sleeping
        assert not a.known.is_sleeping
        assert await done("sleep", other) == {"nothing": "to do"}
        assert await done("wake") == {other: "awake"}
        assert await done("refit", "demo/step-1") == {
            one: "updated",
            other: "updated",
            "version": "1",
        }
        assert await done("sync") == {one: "version 1", other: "version 1"}
        assert await done("remove", other) == {other: "removed"}
        assert b.known.removed

    run_with_pool(test, IMAGES, IMAGES)


def test_an_action_that_fails_for_one_worker_is_status_1(capsys: Capture) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        name = a.known.name
        assert await command(pool, "quarantine", "nobody", name) == 1
        told = rows(capsys.readouterr().out)
        assert "unknown_worker" in told["nobody"]
        assert told[name].startswith("quarantined")
        assert await command(pool, "quarantine", "nobody", "--json") == 1
        assert "unknown_worker" in json.loads(capsys.readouterr().out)[0]["error"]
        assert await command(pool, "refit", "demo/step-1") == 1
        told = rows(capsys.readouterr().out)
        assert told[name].startswith("quarantined: will follow")
        assert told["router"].startswith("No worker can take this call")
        with pytest.raises(Refused, match="no_launcher"):
            await command(pool, "scale", "3")
        with pytest.raises(SettingsError, match="N: expected a number"):
            await command(pool, "scale", "many")
        with pytest.raises(Refused, match="not_launched"):
            await command(pool, "logs", name)
        with pytest.raises(Refused, match="not_launched"):
            await command(pool, "logs", name, "-f")

    run_with_pool(test, IMAGES)


def test_workers_that_cannot_be_woken_are_status_1(capsys: Capture) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        assert await command(pool, "sleep") == 0
        assert await command(pool, "quarantine", a.known.name) == 0
        capsys.readouterr()
        assert await command(pool, "wake") == 1
        told = rows(capsys.readouterr().out)
        assert told[a.known.name].startswith("quarantined, ")
        assert told[b.known.name] == "awake"

    run_with_pool(test, IMAGES, IMAGES)


@needed
def test_a_router_over_tls(tmp_path: Path, capsys: Capture) -> None:
    right = certificate(tmp_path, "IP:127.0.0.1")
    other = certificate(tmp_path, "DNS:other")
    both = tmp_path / "client.pem"
    both.write_text(other.file.read_text() + other.key.read_text())

    async def test(pool: Deployment) -> None:
        url = pool.address.replace("http:", "https:")
        trusted, mine = ("--ca", str(right.file)), ("--cert", str(both))
        assert await command(url, "workers", *trusted, *mine) == 0
        with pytest.raises(NoRouter, match="certificate verification failed"):
            await command(url, "workers", "--ca", str(other.file), *mine)
        with pytest.raises(NoRouter):
            await command(url, "workers", *trusted)
        for flag in ("--ca", "--cert"):
            with pytest.raises(SettingsError, match=f"{flag}: .*nosuch cannot be used"):
                await command(url, "workers", flag, f"{tmp_path}/nosuch")

    files = {"tls_cert": right.file, "tls_key": right.key, "tls_client_ca": other.file}
    run_deployed(test, **{name: str(file) for name, file in files.items()})


def test_a_router_that_follows_no_logs() -> None:
    async def test(pool: Deployment) -> None:
        async def handler(stream: trio.SocketStream) -> None:
            await stream.send_all(answer(200, {"lines": []}))

        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(trio.serve_tcp, handler, 0)
            port = listeners[0].socket.getsockname()[1]
            with pytest.raises(NoRouter, match="too old"):
                await command(f"http://127.0.0.1:{port}", "logs", "x", "-f")
            nursery.cancel_scope.cancel()

    run_deployed(test)


def test_a_refit_that_one_worker_refuses_is_status_1(capsys: Capture) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        b.sim.faults.add("fail_next_update", status=400, message="no such path")
        assert await command(pool, "refit", "demo/step-1") == 1
        told = rows(capsys.readouterr().out)
        assert told[a.known.name] == "updated"
        assert "no such path" in told[b.known.name] or "does not have" in told[b.known.name]

    run_with_pool(test, IMAGES, IMAGES)


def test_drain_waits_for_the_work(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions, "_LOOK", 0.02)

    async def test(pool: Deployment, a: Member) -> None:
        name = a.known.name
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: pool.image(model=None, num_inference_steps=5000))
            await until(lambda: a.known.holds)
            assert await command(pool, "drain", name, "--within", "0s") == 1
            assert "still has 1 in flight" in capsys.readouterr().out
            assert await command(pool, "drain", name, "--now") == 0
            capsys.readouterr()
            nursery.start_soon(hurry, a)
            assert await command(pool, "drain", name) == 0
            assert capsys.readouterr().out == f"{name}  drained\n"
            assert not a.known.holds

    run_with_pool(test, {**IMAGES, "time_scale": 1.0})


async def hurry(member: Member) -> None:
    await trio.sleep(0.1)
    member.sim.scheduler.hurry()


def test_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capsys: Capture) -> None:
    async def test(pool: Deployment) -> None:
        worker = await pool.simulated()
        name = worker.url
        pool.http.headers["Authorization"] = "Bearer secret"
        await pool.register(name)
        assert await command(pool, "workers") == 0  # reading needs no key
        with pytest.raises(NoKey, match=r"refused PUT .*key"):
            await command(pool, "drain", name)
        monkeypatch.setenv(flags.KEY, "wrong")
        with pytest.raises(NoKey):
            await command(pool, "drain", name)
        monkeypatch.setenv(flags.KEY, "secret")
        assert await command(pool, "drain", name) == 0
        monkeypatch.setenv(flags.KEY, "wrong")
        (tmp_path / "key").write_text("secret\n")
        assert await command(pool, "undrain", name, "--admin-api-key-file", f"{tmp_path}/key") == 0

    run_deployed(test, admin_api_key="secret")


@pytest.mark.parametrize(
    ("said", "error", "words"),
    [
        (answer(404, {"detail": "Not Found"}), NoRouter, "older than this program"),
        (answer(404, {"error": "x", "code": "unknown_path"}), NoRouter, "older than"),
        (answer(200, body=b"<html>"), NoRouter, "got no JSON"),
        (answer(302, {}), NoRouter, "is no router"),
        (answer(500, body=b"oops"), NoRouter, "is no router"),
        (answer(503, {"error": "so sad", "code": "sad"}), Refused, r"so sad \(sad\)"),
        (answer(401, {}), NoKey, "status 401"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{", NoRouter, "broke off"),
        (b"220 smtp ready\r\n", NoRouter, "broke off"),
    ],
)
def test_what_is_no_router_is_one_sentence(
    said: bytes, error: type[StartError], words: str, capsys: Capture
) -> None:
    async def test(pool: Deployment) -> None:
        async def handler(stream: trio.SocketStream) -> None:
            await stream.send_all(said)
            await stream.aclose()

        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, handler, listeners)
            with pytest.raises(error, match=words) as found:
                await command(url, "queue")
            nursery.cancel_scope.cancel()
        assert "\n" not in str(found.value)

    run_deployed(test)


def test_nothing_listens() -> None:
    async def main() -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))  # and does not listen
            url = f"http://127.0.0.1:{taken.getsockname()[1]}"
            with pytest.raises(NoRouter, match=f"{url}: connection refused") as found:
                await command(url, "status")
        assert found.value.status == 3

    trio.run(main)


@pytest.mark.parametrize("url", ["", "ftp://x", "http://", "http://a b", "localhost:1"])
def test_addresses_that_are_none(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="--url: expected the address"):
        terminal.parse("status", [f"--url={url}"])
    monkeypatch.setenv(flags.URL, url or "x")
    with pytest.raises(SettingsError, match=f"{flags.URL}: expected the address"):
        terminal.parse("status", [])


def test_the_environment_names_the_router(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(flags.URL, raising=False)
    assert terminal.parse("status", [])[0].url == flags.DEFAULT_URL
    monkeypatch.setenv(flags.URL, "https://router/prefix/")
    assert terminal.parse("status", [])[0].url == "https://router/prefix"
    assert terminal.parse("status", ["--url", "http://other"])[0].url == "http://other"


def test_a_bench(capsys: Capture) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        load = ("--prompts", "8", "--concurrency", "4", "--mix", "image=3,video=1")
        small = ("--size", "64x64", "--steps", "1")
        assert await command(pool, "bench", *load, *small, "--json") == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["prompts"], found["succeeded"], found["errors"]) == (8, 8, {})
        assert (found["slots"], found["work_reported"]) == (2, 8)
        assert found["over_bound"] >= 1
        assert {one["name"]: one["succeeded"] for one in found["workers"]} == {
            a.known.name: 6,
            b.known.name: 2,
        }
        assert await command(pool, "bench", "--prompts", "2", *small) == 0
        told = capsys.readouterr().out
        assert "over the bound" in told
        assert a.known.name in told

    run_with_pool(test, IMAGES, VIDEOS)


def test_a_bench_counts_errors(capsys: Capture) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        assert await command(pool, "bench", "--prompts", "3", "--mix", "video=1", "--json") == 1
        found = json.loads(capsys.readouterr().out)
        assert found["errors"] == {"no_capable_worker": 3}
        assert await command(pool, "quarantine", a.known.name) == 0
        with pytest.raises(Refused, match="no worker of the router is ready"):
            await command(pool, "bench")

    run_with_pool(test, IMAGES)


Condition = Callable[[], object]


def test_the_pool_is_followed_over_a_lost_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        seen, changes = Pool(), []
        settings, _ = terminal.parse("top", ["--url", pool.address])
        async with connected(settings) as client, trio.open_nursery() as nursery:
            nursery.start_soon(follow, client, seen, lambda: changes.append(1))

            async def shows(condition: Condition) -> None:
                with fail_after(20):
                    while not condition():
                        await trio.sleep(0.01)

            await shows(lambda: seen.workers)
            assert seen.workers[a.id]["routable"]
            feed = pool.running.parts.feed
            feed.over.set()  # as when the router stops
            await shows(lambda: seen.trouble)
            assert await command(pool, "quarantine", a.known.name) == 0
            feed.over = trio.Event()
            await shows(lambda: not seen.workers[a.id]["routable"])
            assert seen.trouble is None
            assert changes
            nursery.cancel_scope.cancel()

    run_with_pool(test, IMAGES)


def test_who_connects_again_asks_only_for_what_was_missed() -> None:
    async def main() -> None:
        heads: list[bytes] = []
        again = trio.Event()

        async def handler(stream: trio.SocketStream) -> None:
            heads.append(await stream.receive_some())
            if len(heads) == 2:
                again.set()
            event = b'id: r.7\nevent: snapshot\ndata: {"workers": [], "health": {}}\n\n'
            await stream.send_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + event)

        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(trio.serve_tcp, handler, 0)
            url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
            settings, _ = terminal.parse("top", ["--url", url])
            async with connected(settings) as client:
                nursery.start_soon(follow, client, Pool(), lambda: None)
                with fail_after(20):
                    await again.wait()
                nursery.cancel_scope.cancel()
        assert b"last-event-id" not in heads[0].lower()
        assert b"last-event-id: r.7\r\n" in heads[1].lower()

    trio.run(main)


def test_top_cannot_follow_what_is_no_router() -> None:
    async def test(pool: Deployment) -> None:
        worker = await pool.simulated()
        settings, _ = terminal.parse("top", ["--url", worker.url])
        async with connected(settings) as client:
            with pytest.raises(NoRouter, match="older"):
                await follow(client, Pool(), lambda: None)

    run_deployed(test)
