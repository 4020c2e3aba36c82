"""How router and workers trust each other: certificates of https workers, and keys."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest
import trio
from wsproto.events import RejectConnection

from router.net.trust import Trust
from router.pool.worker import Health, Worker
from router.settings import RouterSettings, with_credentials
from router.store.store import Store
from tests.certificates import Certificate, certificate
from tests.certificates import needed as needs_openssl
from tests.integration.deployment import (
    DEFAULTS,
    NOT_FOUND,
    Deployment,
    ScriptedWorker,
    answer,
    deployed,
    run,
    run_deployed,
    until,
)
from tests.integration.relay.harness import ScriptedWorker as TlsWorker
from tests.integration.relay.harness import answering, listen
from tests.integration.relay.wire import response
from tests.integration.test_websocket_relay import Client

KEY = "worker-key-of-the-pool"


def keeper(worker: ScriptedWorker, key: str, status: int = 401) -> None:
    """Have the worker ask for a key everywhere but at `/health`."""

    def behind(path: str) -> Callable[[trio.SocketStream], Awaitable[None]]:
        async def handler(stream: trio.SocketStream) -> None:
            given = [
                line.partition(b": ")[2]
                for line in worker.heads[-1].split(b"\r\n")
                if line.lower().startswith(b"authorization:")
            ]
            good = given == [b"Bearer " + key.encode()]
            refusal = answer(status, {"error": "Unauthorized"})
            await stream.send_all(DEFAULTS.get(path, NOT_FOUND) if good else refusal)

        return handler

    for path in (*DEFAULTS, "/v1/set_lora", "/socket"):
        if path != "/health":
            worker.answers[path] = behind(path)


async def added(at: Deployment, url: str) -> Worker:
    (await at.http.post("/workers", params={"url": url})).raise_for_status()
    return at.running.parts.registry.get(url)


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("given", [None, "another"])
def test_a_worker_that_wants_a_key_says_so(status: int, given: str | None) -> None:
    async def test(at: Deployment) -> None:
        script = await at.script()
        keeper(script, KEY, status)
        worker = await added(at, script.url)
        await until(lambda: worker.health is Health.UNHEALTHY)
        [row] = (await at.http.get("/workers")).json()["workers"]
        assert row["reasons"] == ["unhealthy", "unauthorized"]
        assert f"GET /v1/models answered {status}; see --worker-api-key" in row["health_reason"]
        keeper(script, given or "")
        if given:
            await until(lambda: worker.health is Health.HEALTHY)
            [row] = (await at.http.get("/workers")).json()["workers"]
            assert row["reasons"] == []

    run_deployed(test, worker_api_key=given)


def test_the_key_goes_to_workers_in_place_of_what_clients_send(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    async def test(at: Deployment) -> None:
        script = await at.script()
        keeper(script, KEY)
        worker = await added(at, script.url)
        await until(lambda: worker.health is Health.HEALTHY)
        for headers in (
            {},
            {"authorization": "Bearer of-the-client", "x-api-key": "of-the-client"},
        ):
            image = await at.http.post("/v1/images/generations", json={}, headers=headers)
            assert image.status_code == 200
            await at.http.post("/v1/set_lora", json={"lora_nickname": "x"}, headers=headers)
        client = Client(await trio.open_tcp_stream("127.0.0.1", at.running.port))
        refused = await client.open("/socket", extra_headers=[(b"authorization", b"of-the-client")])
        assert isinstance(refused, RejectConnection)
        await trio.aclose_forcefully(client.stream)
        for asked in ("POST /v1/images/generations", "POST /v1/set_lora", "GET /socket"):
            assert asked in script.asked
        for head in script.heads:
            assert head.lower().count(b"authorization: ") == 1, head
            assert b"Bearer " + KEY.encode() in head
            assert b"of-the-client" not in head

    async def main() -> None:
        async with deployed(worker_api_key=KEY, store=Store.open(tmp_path)) as at:
            await test(at)

    run(main)
    assert caplog.records
    assert KEY not in caplog.text
    assert all(KEY not in path.read_text() for path in tmp_path.glob("*.jsonl"))


def test_without_a_key_that_of_the_client_passes() -> None:
    async def test(at: Deployment) -> None:
        script = await at.script()
        await at.register(script.url)
        headers = {"authorization": "Bearer of-the-client"}
        assert (await at.http.post("/v1/images/generations", headers=headers)).status_code == 200
        given = [head.startswith(b"POST") for head in script.heads]
        assert given.count(True) == 1  # the others are probes, which may come at any time
        assert [b"Bearer of-the-client" in head for head in script.heads] == given
        assert [b"uthorization" in head for head in script.heads] == given

    run_deployed(test)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return certificate(tmp_path_factory.mktemp("tls"), "IP:127.0.0.1")


@pytest.fixture
def strange(tmp_path: Path) -> Certificate:
    """One that is of another host too."""
    return certificate(tmp_path, "DNS:elsewhere.test")


async def serves(at: Deployment, tls: Certificate) -> Worker:
    """Register an https worker, and wait until all connections to it are made, or it has failed."""
    script = answering(response(body=b"{}"))
    worker = TlsWorker(script, await listen(), tls=tls.server())
    await at.nursery.start(worker.run)
    registered = await added(at, worker.url)
    try:
        await until(lambda: registered.health in (Health.HEALTHY, Health.UNHEALTHY))
        if registered.health is Health.HEALTHY:
            watch = at.running.parts.watchman._watches[registered]
            await until(lambda: watch.idle is not None)
            image: httpx.Response = await at.image()
            assert image.status_code == 200
    finally:
        worker.refuse()
    return registered


@needs_openssl
def test_https_workers_are_checked_with_the_certificates_given(
    made: Certificate, strange: Certificate
) -> None:
    async def trusted(at: Deployment) -> None:
        assert (await serves(at, made)).health is Health.HEALTHY
        other = await serves(at, strange)
        assert other.health is Health.UNHEALTHY
        assert other.health_reason is not None
        assert "certificate verification failed" in other.health_reason

    async def unknown(at: Deployment) -> None:
        assert (await serves(at, made)).health is Health.UNHEALTHY

    run_deployed(trusted, worker_ca=str(made.file))
    run_deployed(unknown)


@needs_openssl
def test_insecure_takes_any_certificate(
    strange: Certificate, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(at: Deployment) -> None:
        assert (await serves(at, strange)).health is Health.HEALTHY

    run_deployed(test, worker_insecure=True)
    assert "NOT VERIFIED" in caplog.text


@needs_openssl
def test_the_system_s_certificates_are_those_of_ssl_cert_file(
    made: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(made.file))

    async def test(at: Deployment) -> None:
        assert (await serves(at, made)).health is Health.HEALTHY

    run_deployed(test)


def test_an_ssl_cert_file_that_is_not_there_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))

    async def test(at: Deployment) -> None:
        await at.script()

    run_deployed(test)
    assert "SSL_CERT_FILE" in caplog.text


def test_one_context_for_all_connections() -> None:
    async def test(at: Deployment) -> None:
        client, upstream = at.running.parts.client, at.running.upstream
        assert client.trust is upstream.trust
        assert client.trust.tls is client.trust.tls

    run_deployed(test)


def test_faults_of_the_files_are_sentences(tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.write_text("two words\n")
    command = ["-m", "router", "serve", "--worker-api-key-file", bad, "--worker-ca", bad]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env=environment,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "--worker-api-key: expected printable ASCII characters without spaces" in done.stderr
    assert f"--worker-ca: {bad} contains no valid PEM certificate" in done.stderr
    assert "two words" not in done.stderr
    missing = str(tmp_path / "missing")
    _, problems = with_credentials(RouterSettings(worker_ca=missing, worker_api_key_file=missing))
    assert [str(problem) for problem in problems] == [
        f"--worker-api-key-file: {missing} cannot be read: no such file or directory",
        f"--worker-ca: {missing} cannot be read: no such file or directory",
    ]


def test_a_key_is_not_shown() -> None:
    assert KEY not in repr(Trust(key=KEY))
