"""The admin key: what needs it, what does not, and who never sees it."""

from __future__ import annotations

import hmac
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from router.relay import access
from router.relay.routes import ROUTES, How
from router.settings import RouterSettings, with_credentials
from tests.integration.api.pools import IMAGES, VIDEOS, RunPool, is_ours
from tests.integration.deployment import IMAGE, Deployment

KEY = "s3cret-åß-key"
BEARER = {"authorization": b"Bearer " + KEY.encode()}
OTHER = {"authorization": "Bearer sk-openai"}

GUARDED = [
    ("POST", "/workers"),
    ("PUT", "/workers/http://127.0.0.1:9"),
    ("DELETE", "/workers/http%3A%2F%2F127.0.0.1%3A9"),
    ("POST", "/add_worker"),
    ("POST", "/remove_worker"),
    ("POST", "/update_weights_from_disk"),
    ("POST", "/update_weights_from_tensor"),
    ("POST", "/v1/set_lora"),
    ("POST", "/v1/merge_lora_weights"),
    ("POST", "/v1/unmerge_lora_weights"),
    ("POST", "/release_memory_occupation"),
    ("POST", "/resume_memory_occupation"),
    ("POST", "/release_memory_occupation/"),
    ("GET", "/release_memory_occupation"),
    ("POST", "//release_memory_occupation"),
    ("POST", "/%72elease_memory_occupation"),
    ("POST", "/v1/videos/../../release_memory_occupation"),
    ("POST", "/v1/images/generations/../x"),
    ("POST", "/release_memory_occupation%3Fx"),
    ("POST", "/some/new/endpoint"),
    ("DELETE", "/some/new/endpoint"),
]
OPEN = [
    ("GET", "/health"),
    ("GET", "/live"),
    ("GET", "/workers"),
    ("GET", "/list_workers"),
    ("GET", "/v1/models"),
    ("GET", "/v1/videos"),
    ("GET", "/v1/videos/x"),
    ("DELETE", "/v1/videos/x"),
    ("GET", "/v1/list_loras"),
    ("POST", "/get_weights_checksum"),
    ("POST", "/v1/images/generations"),
    ("POST", "/rollout/generate"),
    ("POST", "/v1/videos"),
    ("GET", "/some/new/endpoint"),
]


@pytest.mark.parametrize(("method", "path"), GUARDED)
def test_what_changes_something_needs_the_key(run_pool: RunPool, method: str, path: str) -> None:
    async def test(pool: Deployment) -> None:
        sim = await pool.simulated(**IMAGES)
        added = await pool.http.post("/workers", json={"url": sim.url}, headers=BEARER)
        assert added.status_code == 200
        sim.log.requests.clear()

        async def ask(headers: Any = None) -> httpx.Response:
            exactly = {"target": path.encode()}  # else httpx resolves the dots
            return await pool.http.request(method, "/", headers=headers, extensions=exactly)

        refused = await ask()
        is_ours(refused, 401, "admin_key_missing")
        assert refused.headers["www-authenticate"].startswith("Bearer")
        for headers in (
            OTHER,
            {"authorization": "Bearer"},
            {"authorization": b"Bearer " + KEY.encode()[:-1]},
            {"authorization": b"Bearer " + KEY.encode() + b"x"},
            {"x-api-key": "wrong"},
            {"x-api-key": ""},
        ):
            refused = await ask(headers)
            is_ours(refused, 403, "admin_key_wrong")
        for headers in ({"authorization": b"Basic " + KEY.encode()}, {"cookie": KEY.encode()}):
            refused = await ask(headers)
            is_ours(refused, 401, "admin_key_missing")
        assert [
            e for e in sim.log.requests if not e.target.startswith(("/health", "/v1/mod"))
        ] == []

        for right in (
            BEARER,
            {"authorization": b"bearer  " + KEY.encode()},
            {"x-api-key": KEY.encode()},
            [("authorization", "Bearer sk-openai"), ("x-api-key", KEY.encode())],
        ):
            let_in = await ask(right)
            assert let_in.status_code not in (401, 403)

    run_pool(test, admin_api_key=KEY)


@pytest.mark.parametrize(("method", "path"), OPEN)
def test_generating_and_reading_stay_open(run_pool: RunPool, method: str, path: str) -> None:
    async def test(pool: Deployment) -> None:
        sim = await pool.simulated(**VIDEOS)
        await pool.http.post("/workers", json={"url": sim.url}, headers=BEARER)
        for headers in ({}, OTHER, BEARER):
            answer = await pool.http.request(method, path, headers=headers, json=IMAGE)
            assert answer.status_code not in (401, 403)

    run_pool(test, admin_api_key=KEY)


def test_every_row_that_changes_something_is_guarded() -> None:
    for route in ROUTES:
        for method in route.methods:
            changes = route.how is How.CHANGE or (
                route.how is How.OWN and method not in ("GET", "HEAD")
            )
            if changes or route.path.endswith("/logs"):
                assert access.needs_key(route, method), route.path
            if route.how in (How.GENERATE, How.SUBMIT, How.OWNER, How.MERGED):
                assert not access.needs_key(route, method), route.path


def test_workers_never_see_the_key_and_logs_do_not_have_it(
    run_pool: RunPool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    async def test(pool: Deployment) -> None:
        sim = await pool.simulated(**VIDEOS)
        await pool.http.post("/workers", json={"url": sim.url}, headers=BEARER)
        both = [*BEARER.items(), ("x-api-key", KEY.encode()), ("x-other", "kept")]
        for method, path, content in (
            ("POST", "/v1/images/generations", IMAGE),
            ("POST", "/v1/videos", IMAGE),
            ("GET", "/some/path", None),
            ("POST", "/some/path", None),
            ("POST", "/update_weights_from_disk", {"model_path": "x"}),
            ("POST", "/get_weights_checksum", {}),
            ("GET", "/v1/videos/nobodys", None),
            ("POST", "/workers", {"url": "http://169.254.169.254"}),
        ):
            await pool.http.request(method, path, json=content, headers=both)
        assert len(sim.log.requests) > 7
        for entry in sim.log.requests:
            assert not [name for name, _ in entry.headers if name.lower() in ("x-api-key",)]
            assert KEY not in str(entry.headers)
            assert "authorization" not in str(entry.headers).lower()
        seen = [e for e in sim.log.requests if e.target == "/some/path"]
        assert all(("x-other", "kept") in e.headers for e in seen)

        # A key that is not ours is the client's business with the worker.
        await pool.http.get("/some/path", headers=OTHER)
        seen = [e for e in sim.log.requests if e.target == "/some/path"]
        assert ("authorization", "Bearer sk-openai") in seen[-1].headers

    run_pool(test, admin_api_key=KEY)
    text = "\n".join(
        f"{r.getMessage()} {r.__dict__}" for r in caplog.records if "httpc" not in r.name
    )
    assert "access" in text or "169.254" in text  # it did log
    assert KEY not in text
    assert KEY not in repr(access.AdminKey(app=None, key=KEY.encode()))  # type: ignore[arg-type]


def test_keys_are_compared_in_constant_time(
    run_pool: RunPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[Any] = []
    honest = hmac.compare_digest

    def compare(a: Any, b: Any) -> bool:
        compared.append((a, b))
        return honest(a, b)

    monkeypatch.setattr(access.hmac, "compare_digest", compare)

    async def test(pool: Deployment) -> None:
        await pool.http.post("/add_worker", headers=OTHER)

    run_pool(test, admin_api_key=KEY)
    assert compared == [(b"sk-openai", KEY.encode())]


def test_websockets_do_not_carry_the_key_on(run_pool: RunPool) -> None:
    """A handshake that is refused by the worker shows what the worker was sent."""

    async def test(pool: Deployment) -> None:
        sim = await pool.simulated(**IMAGES)
        await pool.http.post("/workers", json={"url": sim.url}, headers=BEARER)
        upgrade = {
            "connection": "upgrade",
            "upgrade": "websocket",
            "sec-websocket-version": "13",
            "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
        }
        answer = await pool.http.get("/nothing/here", headers={**upgrade, **BEARER})
        assert answer.status_code == 403
        [entry] = [e for e in sim.log.requests if e.target == "/nothing/here"]
        assert KEY not in str(entry.headers)
        assert "authorization" not in str(entry.headers).lower()

    run_pool(test, admin_api_key=KEY)


def test_the_key_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(KEY + "\n", encoding="utf-8")
    settings, problems = with_credentials(RouterSettings(admin_api_key_file=str(file)))
    assert problems == []
    assert (settings.admin_api_key, settings.admin_api_key_file) == (KEY, None)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "cannot be read: no such file or directory"),
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"\xff", "is not UTF-8 text"),
    ],
)
def test_a_start_without_a_key_is_a_sentence(
    tmp_path: Path, content: bytes | None, told: str
) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
    port = "x" if content is None else "0"
    command = ["-m", "router", "serve", "--port", port, "--admin-api-key-file", file]
    command += ["--state-dir", "none"]
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert f"error: --admin-api-key-file: {file} {told}\n" in done.stderr
    assert ("error: --port: " in done.stderr) is (port == "x")  # all mistakes at once
    assert "Traceback" not in done.stderr
