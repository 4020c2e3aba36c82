"""Everything in examples/, and the README's own lines, against a router and simulated workers."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import frozen

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
WITHIN = 30.0  # seconds for any one process to begin, or for an example to run
PNG = b"\x89PNG\r\n\x1a\n"

needs_curl = pytest.mark.skipif(
    not (shutil.which("curl") and shutil.which("bash")), reason="curl or bash is missing"
)


@frozen
class Pool:
    """A running router, and a worker that it does not know at first."""

    url: str
    newcomer: str


@contextlib.contextmanager
def process(log: Path, pattern: str, *command: str | Path) -> Iterator[str]:
    """Run a part of the pool; gives what `pattern` finds in its log. Ends it again: cleanly, or
    the test fails."""
    with log.open("wb") as output:
        running = subprocess.Popen(
            [sys.executable, *command], stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        yield wait_for(pattern, log, running)
        running.terminate()
        assert running.wait(WITHIN) == 0, log.read_text(encoding="utf-8")
    finally:
        running.kill()
        running.wait()


def wait_for(pattern: str, log: Path, running: subprocess.Popen[bytes]) -> str:
    end = time.monotonic() + WITHIN
    while time.monotonic() < end and running.poll() is None:
        found = re.search(pattern, log.read_text(encoding="utf-8"))
        if found:
            return found[1]
        time.sleep(0.02)
    pytest.fail(f"{pattern!r} did not come: {log.read_text(encoding='utf-8')}")


def worker(pyz: Path, log: Path) -> contextlib.AbstractContextManager[str]:
    """A simulated worker; gives its URL."""
    flags = ["--port", "0", "--supported-task-types", "T2I,TI2I,T2V", "--time-scale", "0.1"]
    model = ["--model-path", "demo/image-and-video"]
    return process(log, r"serving .* on (http://\S+)", pyz, "simulate-worker", *model, *flags)


@pytest.fixture(scope="module")
def pool(router_pyz: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """A router configured by examples/router.yaml, but for the addresses, with one worker."""
    logs = tmp_path_factory.mktemp("logs")
    with (
        worker(router_pyz, logs / "first.log") as first,
        worker(router_pyz, logs / "second.log") as second,
        process(
            logs / "router.log",
            r"listening on (http://\S+)",
            router_pyz,
            *("--config", EXAMPLES / "router.yaml"),
            *("--host", "127.0.0.1", "--port", "0", "--worker-urls", first),
        ) as url,
    ):
        wait_until_ready(url)
        yield Pool(url, second)


def wait_until_ready(url: str) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + WITHIN
    while True:
        try:
            with direct.open(f"{url}/ready", timeout=WITHIN) as response:
                return json.load(response)  # type: ignore[no-any-return]
        except OSError:  # 503 until the worker's first probe is over
            if time.monotonic() > end:
                raise
            time.sleep(0.02)


def run(
    *command: str | Path, cwd: Path, status: int = 0, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run an example in an empty folder of its own, without the proxies of this machine."""
    inherited = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**inherited, **env},
        capture_output=True,
        text=True,
        timeout=WITHIN,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done


def size_of(picture: Path) -> tuple[int, int]:
    data = picture.read_bytes()
    assert data.startswith(PNG)
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def blocks(markdown: Path) -> list[str]:
    """The code blocks of a document."""
    return re.findall(r"^```\w*\n(.*?)^```", markdown.read_text(encoding="utf-8"), re.M | re.S)


@needs_curl
def test_curl(pool: Pool, tmp_path: Path) -> None:
    script = EXAMPLES / "curl.sh"
    done = run("bash", script, cwd=tmp_path, ROUTER=pool.url, WORKER=pool.newcomer)
    assert size_of(tmp_path / "kite.png") == (512, 512)
    assert "The worker is healthy" in done.stdout
    assert done.stdout.count("routable=True ['demo/image-and-video']") == 2
    assert "x-request-id: kite-1" in done.stdout
    assert re.search(r"^x-worker-id: http%3A%2F%2F127\.0\.0\.1%3A\d+$", done.stdout, re.M)
    assert "\n['draining']\n[]\n" in done.stdout
    assert '"healthy_workers":2' in done.stdout
    assert os.listdir(tmp_path) == ["kite.png"]

    again = run("bash", script, cwd=tmp_path, ROUTER=pool.url)  # finds a worker by itself
    assert "The worker is healthy" in again.stdout


@needs_curl
def test_curl_stops_at_an_error(pool: Pool, tmp_path: Path) -> None:
    done = run(
        *("bash", EXAMPLES / "curl.sh"),
        cwd=tmp_path,
        status=1,
        ROUTER=pool.url,
        WORKER="http://169.254.169.254",
    )
    assert "Worker URL 'http://169.254.169.254' is blocked" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_generate_image(pool: Pool, tmp_path: Path) -> None:
    command = (sys.executable, EXAMPLES / "generate_image.py", "a kite", "--router", pool.url)
    done = run(*command, "--output", "kite.png", cwd=tmp_path)
    assert size_of(tmp_path / "kite.png") == (512, 512)
    assert re.fullmatch(r"kite\.png: \d+ bytes, made by http%3A%2F%2F\S+\n", done.stdout)

    run(*command, "--size", "64x48", "-n", "2", "--seed", "3", cwd=tmp_path)
    first, second = tmp_path / "image_0.png", tmp_path / "image_1.png"
    assert size_of(first) == size_of(second) == (64, 48)
    assert first.read_bytes() != second.read_bytes()


def test_generate_image_tells_what_went_wrong(pool: Pool, tmp_path: Path) -> None:
    script = EXAMPLES / "generate_image.py"
    done = run(
        *(sys.executable, script, "a kite", "--router", pool.url, "--size", "large"),
        cwd=tmp_path,
        status=1,
    )
    assert done.stderr.startswith("4")
    assert "Traceback" not in done.stderr

    nobody = "http://127.0.0.1:9"
    done = run(sys.executable, script, "a kite", "--router", nobody, cwd=tmp_path, status=1)
    assert done.stderr.startswith(f"{nobody} could not be reached: ")


@pytest.mark.skipif(importlib.util.find_spec("openai") is None, reason="openai is not installed")
def test_openai_client(pool: Pool, tmp_path: Path) -> None:
    done = run(sys.executable, EXAMPLES / "openai_client.py", pool.url, cwd=tmp_path)
    assert size_of(tmp_path / "kite.png") == (1024, 1024)
    assert done.stdout.startswith("models: demo/image-and-video\nkite.png: ")
    assert done.stdout.endswith("refused as it should be: 400\n")


@needs_curl
def test_the_lines_of_the_readme(pool: Pool, tmp_path: Path) -> None:
    for block in blocks(ROOT / "README.md"):
        if block.startswith("curl"):
            lines = block.replace("http://localhost:30081", pool.url)
            lines = lines.replace("http://10.0.0.7:30000", pool.newcomer)
            assert "localhost" not in lines
            run("bash", "-euo", "pipefail", "-c", lines, cwd=tmp_path)
    assert size_of(tmp_path / "kite.png") == (1024, 1024)


def test_every_example_is_tested() -> None:
    tested = Path(__file__).read_text(encoding="utf-8")
    for example in EXAMPLES.iterdir():
        assert example.name == "README.md" or f'"{example.name}"' in tested, example.name
