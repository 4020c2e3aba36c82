"""Changed settings are applied while the router runs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from attrs import evolve

from router.settings import RouterSettings, load, split_flags
from router.settings.fields import fields_of
from tests.integration.api.pools import is_ours
from tests.integration.deployment import (
    DEFAULTS,
    deployed,
    run,
    until,
    when,
)

LIVE = {name for name, each in fields_of(RouterSettings).items() if each.live}


def reading(file: Path) -> Callable[[], RouterSettings]:
    """Settings as the command line reads them, from this file."""
    flags = split_flags(["--config", str(file), "--host", "127.0.0.1"], RouterSettings, config=True)
    return lambda: load(RouterSettings, flags)


class Settings(RouterSettings):
    """Settings that note what is read of them."""

    seen: set[str] = set()  # noqa: RUF012

    def __getattribute__(self, name: str) -> Any:
        Settings.seen.add(name)
        return super().__getattribute__(name)


def test_parts_follow_exactly_the_settings_that_are_declared_live() -> None:
    async def main() -> None:
        async with deployed() as pool:
            live = pool.running.reload.live
            noting = Settings()
            Settings.seen.clear()
            for follower in live.followers:
                follower(noting)
            # The log level belongs to the process: `service.run` follows it.
            assert Settings.seen | {"log_level", "verbose"} == LIVE

    run(main)


def test_a_changed_file_is_applied(tmp_path: Path) -> None:
    file = tmp_path / "router.yaml"

    async def main() -> None:
        async with deployed(again=reading(file), **given) as pool:
            parts = pool.running.parts
            file.write_text(
                "queue_size: 7\nretries: 1\nhealth_check_interval: 30s\nport: 81\n"
                "ejection_pause: 2s\n"
                "routing-algorithm: round-robin\nrefit_timeout: 9s\nmax_jobs_per_worker: 3\n"
            )
            told = (await pool.http.post("/config/reload")).json()
            assert told["status"] == "success"
            assert sorted(told["applied"]) == [
                "ejection_pause",
                "health_check_interval",
                "max_jobs_per_worker",
                "queue_size",
                "refit_timeout",
                "retries",
                "routing_algorithm",
            ]
            assert told["needs_restart"] == ["port"]
            assert "worker_urls" in told["unchanged"]
            assert len(told["unchanged"]) + 8 == len(fields_of(RouterSettings))
            assert parts.dispatcher.limits.size == 7
            assert parts.dispatcher.queue.most_jobs == 3
            assert type(parts.dispatcher.queue.policy).__name__ == "RoundRobin"
            assert parts.registry.ejection.limits.pause == 2
            assert parts.watchman.interval == 30
            assert parts.limits.refit == parts.weights.call_timeout == 9
            assert (await pool.http.get("/queue")).json()["limit"] == 7
            again = (await pool.http.post("/config/reload")).json()
            assert again["applied"] == []
            assert again["needs_restart"] == ["port"]  # the router still has the old port

    given = {"shutdown_timeout": 60.0, "health_check_interval": 10.0}
    run(main)


def test_a_broken_file_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "router.yaml"

    async def main() -> None:
        async with deployed(again=reading(file)) as pool:
            before = pool.running.reload.live.settings
            for text, said in (
                ("retries: 1\nqueue_size: many\n", "queue_size: expected a whole number"),
                ("retries: 1\nqueue_sise: 3\n", "unknown key (did you mean queue_size?)"),
                ("retries: [\n", "line 2, column 1: not valid YAML"),
            ):
                file.write_text(text)
                refused = await pool.http.post("/config/reload")
                is_ours(refused, 422, "config_invalid")
                assert said in refused.json()["problems"][0]
                assert pool.running.reload.live.settings is before
            await pool.running.reload.on_signal()
            assert any("not valid YAML" in each.message for each in caplog.records)

    with caplog.at_level(logging.INFO, "router"):
        run(main)


def test_requests_under_way_and_waiting_go_on(tmp_path: Path) -> None:
    file = tmp_path / "router.yaml"

    async def main() -> None:
        async with deployed(again=reading(file)) as pool:
            gate = trio.Event()
            path = "/v1/images/generations"
            worker = await pool.script(**{path: when(gate, DEFAULTS[path])})
            await pool.register(worker.url)
            answers: list[httpx.Response] = []

            async def ask() -> None:
                answers.append(await pool.image())

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                nursery.start_soon(ask)
                await until(lambda: pool.running.parts.dispatcher.queue.waiting == 1)
                file.write_text("queue_size: 0\ntimeout: 1h\nretries: 0\n")
                told = (await pool.http.post("/config/reload")).json()
                assert {"queue_size", "timeout", "retries"} <= set(told["applied"])
                is_ours(await pool.image(), 503, "queue_full")
                gate.set()
            assert [each.status_code for each in answers] == [200, 200]

    run(main)


def test_a_reload_needs_the_admin_key() -> None:
    async def main() -> None:
        async with deployed(admin_api_key="key") as pool:
            assert (await pool.http.post("/config/reload")).status_code == 401
            allowed = await pool.http.post("/config/reload", headers={"x-api-key": "key"})
            assert allowed.json()["applied"] == []

    run(main)


def test_limits_of_clients_change_for_open_connections_too() -> None:
    async def main() -> None:
        wanted = RouterSettings()
        async with deployed(again=lambda: wanted, max_request_bytes=10) as pool:
            path = "/v1/images/generations"
            is_ours(await pool.http.post(path, content=b"x" * 11), 413, "request_too_large")
            wanted = evolve(pool.running.reload.live.settings, max_request_bytes=100)
            await pool.http.post("/config/reload")
            is_ours(await pool.http.post(path, content=b"x" * 11), 503, "no_workers")

    run(main)
