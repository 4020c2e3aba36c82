"""Everything in examples/, and the README's own lines, against a router and simulated workers."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import frozen

from tests.e2e.processes import WITHIN, ask, router, wait_until_ready, worker

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PNG = b"\x89PNG\r\n\x1a\n"

needs_curl = pytest.mark.skipif(
    not (shutil.which("curl") and shutil.which("bash")), reason="curl or bash is missing"
)


@frozen
class Pool:
    """A running router, and a worker that it does not know at first."""

    url: str
    newcomer: str


@pytest.fixture(scope="module")
def pool(router_pyz: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """A router configured by examples/router.yaml, but for the addresses, with one worker."""
    logs = tmp_path_factory.mktemp("logs")
    with (
        worker(router_pyz, logs / "first.log") as first,
        worker(router_pyz, logs / "second.log") as second,
        router(
            router_pyz,
            logs / "router.log",
            *("--config", EXAMPLES / "router.yaml", "--worker-urls", first),
        ) as url,
    ):
        wait_until_ready(url)
        yield Pool(url, second)


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
    assert "\ncompleted\nTrue\ndeleted\n" in done.stdout
    assert (tmp_path / "kite.mp4").stat().st_size > 1000
    assert "[200, 200]\nconsistent: True\n" in done.stdout
    assert "all asleep: True\nAll workers are already sleeping\nall awake: True\n" in done.stdout
    assert sorted(os.listdir(tmp_path)) == ["kite.mp4", "kite.png"]

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


def test_walkthrough(pool: Pool, tmp_path: Path) -> None:
    command = (sys.executable, EXAMPLES / "walkthrough.py", "--router", pool.url)
    done = run(*command, "--worker", pool.newcomer, cwd=tmp_path)
    assert "register: The worker is healthy\n" in done.stdout
    assert f"  {pool.newcomer} routable=True makes ['T2I', 'TI2I', 'T2V']\n" in done.stdout
    assert "update: max_concurrency is 2\n" in done.stdout
    assert "refit: 2 workers, 0 left out\nall have the same weights: True\n" in done.stdout
    assert "sleep: 2 workers gave their GPU memory back\n" in done.stdout
    assert "again: All workers are already sleeping\nwake: 2 workers are back\n" in done.stdout
    before, after = tmp_path / "kite.png", tmp_path / "kite_after.png"
    assert size_of(before) == size_of(after) == (512, 512)
    assert before.read_bytes() == after.read_bytes()  # the same weights again
    assert b"ftyp" in (tmp_path / "kite.mp4").read_bytes()[:32]

    run(*command, "--weights", "demo/other", cwd=tmp_path)
    assert before.read_bytes() != after.read_bytes()
    done = run(*command, "--weights", "/nonexistent", cwd=tmp_path, status=1)
    assert "400 " in done.stderr
    assert "Traceback" not in done.stderr


def test_rl_loop(pool: Pool, tmp_path: Path) -> None:
    urls = [worker["url"] for worker in ask("GET", f"{pool.url}/workers")["workers"]]
    for url in urls:
        ask("DELETE", f"{url}/simulate/log")
    script = EXAMPLES / "rl_loop.py"
    options = ("--router", pool.url, "--steps", "3", "--prompts", "6", "--verify")
    done = run(sys.executable, script, *options, cwd=tmp_path)
    assert len(done.stdout.splitlines()) == 3 * 6 + 1
    rollout = r"^(\S+ \S+): rollout: 6 groups of weight version (\d+), \d+ bytes, by [12] workers$"
    versions = [int(number) for _, number in re.findall(rollout, done.stdout, re.M)]
    refit = rf"refit: weight version (\d+) on {len(urls)} workers, 0 to follow$"
    refits = re.findall(refit, done.stdout, re.M)
    assert versions[1:] == list(map(int, refits))
    assert versions == [*range(versions[0], versions[0] + 4)]
    assert done.stdout.count(f": {len(urls)} workers gave their GPU memory back\n") == 3
    assert done.stdout.count(f": {len(urls)} workers are awake\n") == 3
    assert len(set(re.findall(r"verify: all have (\w{12})$", done.stdout, re.M))) == 3
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["step-0", "step-1", "step-2"]
    made_with: Counter[str] = Counter()
    for url in urls:
        entries = ask("GET", f"{url}/simulate/log")["entries"]
        made_with.update(entry["weights"] for entry in entries if entry["kind"] == "rollout")
    assert list(made_with.values()) == [6] * 4  # no sample of any step is of other weights


def test_rl_loop_tells_what_went_wrong(pool: Pool, tmp_path: Path) -> None:
    command = (sys.executable, EXAMPLES / "rl_loop.py", "--steps", "1")
    done = run(*command, "--router", pool.url, "--model", "no/such", cwd=tmp_path, status=1)
    assert "404 " in done.stderr
    assert "unknown_model" in done.stderr
    done = run(*command, "--router", "http://127.0.0.1:9", cwd=tmp_path, status=1)
    assert done.stderr.startswith("http://127.0.0.1:9 could not be reached: ")
    assert "--checkpoints" in run(*command, "--help", cwd=tmp_path).stdout


@pytest.mark.skipif(importlib.util.find_spec("openai") is None, reason="openai is not installed")
def test_openai_client(pool: Pool, tmp_path: Path) -> None:
    done = run(sys.executable, EXAMPLES / "openai_client.py", pool.url, cwd=tmp_path)
    assert size_of(tmp_path / "kite.png") == (1024, 1024)
    assert done.stdout.startswith("models: demo/image-and-video\nkite.png: ")
    assert (tmp_path / "kite_blue.png").read_bytes() != (tmp_path / "kite.png").read_bytes()
    assert re.search(r"^video \S+: completed\nkite.mp4: \d{4,} bytes$", done.stdout, re.M)
    assert "\ndeleted: Unknown video_id\n" in done.stdout
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
    assert (tmp_path / "kite.mp4").read_bytes()[4:8] == b"ftyp"


@pytest.mark.skipif(importlib.util.find_spec("openai") is None, reason="openai is not installed")
def test_the_python_of_the_readme(pool: Pool, tmp_path: Path) -> None:
    (program,) = [block for block in blocks(ROOT / "README.md") if "openai" in block]
    program = program.replace("http://localhost:30081", pool.url)
    run(sys.executable, "-c", program, cwd=tmp_path)
    assert size_of(tmp_path / "kite.png") == (1024, 1024)
    assert (tmp_path / "kite.mp4").read_bytes()[4:8] == b"ftyp"


def simulated(name: str, router_pyz: Path, folder: Path) -> Path:
    """A file of launchers with simulated workers, few of them, on any free ports."""
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    command = json.dumps(
        [sys.executable, str(router_pyz), "simulate-worker", "--time-scale", "0.1"]
    )
    text = re.sub(r"num_workers: \d+", "num_workers: 1", text)
    text = re.sub(r"\n +worker_base_port: .*", "", text)
    ports = "worker_base_port: 0, master_port_base: 0, scheduler_port_base: 0"
    more = f"<<: {{{ports}, log_dir: {json.dumps(str(folder / 'logs'))}, command: {command}}}"
    path = folder / name
    path.write_text(re.sub(r"^( +)(model: )", rf"\1{more}\n\1\2", text, flags=re.M))
    return path


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX processes")
@pytest.mark.parametrize(
    ("name", "models"),
    [
        ("local_launcher.yaml", ["Qwen/Qwen-Image"]),
        ("mixed_launcher.yaml", ["Qwen/Qwen-Image", "Wan-AI/Wan2.2-T2V-A14B-Diffusers"]),
    ],
)
def test_launchers(
    router_pyz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, models: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    path = simulated(name, router_pyz, tmp_path)
    with router(router_pyz, tmp_path / "router.log", "--launcher-config", path) as url:
        wait_until_ready(url)
        end = time.monotonic() + WITHIN
        found: list[str] = []
        while found != models and time.monotonic() < end:
            with contextlib.suppress(OSError):  # 503 until one of them has loaded
                found = sorted(model["id"] for model in ask("GET", f"{url}/v1/models")["data"])
            time.sleep(0.05)
        assert found == models, (tmp_path / "router.log").read_text()


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX processes")
def test_the_command_of_the_systemd_unit(
    router_pyz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    unit = (EXAMPLES / "sglang-d-router.service").read_text(encoding="utf-8")
    found = re.search(r"^ExecStart=((?:.*\\\n)*.*)$", unit, re.M)
    assert found
    (tmp_path / "admin-key").write_text("secret\n")
    launch = simulated("local_launcher.yaml", router_pyz, tmp_path)
    words = found[1].replace("\\\n", " ").split()
    assert words[:2] == ["/usr/bin/python3", "/opt/sglang-d-router/router.pyz"]
    words = [word.replace("/etc/sglang-d-router", str(tmp_path)) for word in words[2:]]
    words = [str(launch) if word.endswith("/launcher.yaml") else word for word in words]
    with router(router_pyz, tmp_path / "router.log", *words) as url:
        wait_until_ready(url)


def test_the_socket_unit_has_the_port_of_the_service() -> None:
    """test_upgrade.py starts a router as such a unit does."""
    service = (EXAMPLES / "sglang-d-router.service").read_text(encoding="utf-8")
    unit = (EXAMPLES / "sglang-d-router.socket").read_text(encoding="utf-8")
    port = re.search(r"^ListenStream=(\d+)$", unit, re.M)
    assert port
    assert f" --port {port[1]} " in service


@pytest.mark.skipif(not shutil.which("nginx"), reason="needs nginx")
def test_the_configuration_of_nginx(router_pyz: Path, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        front = probe.getsockname()[1]
    text = (EXAMPLES / "nginx.conf").read_text(encoding="utf-8")
    text, plain = re.subn("listen 443 ssl;", f"listen 127.0.0.1:{front};", text)
    text, certificates = re.subn(" *ssl_certificate.*;\n", "", text)
    assert (plain, certificates) == (1, 2)
    with router(router_pyz, tmp_path / "router.log") as url:
        assert "127.0.0.1:30080" in text
        text = text.replace("127.0.0.1:30080", url.removeprefix("http://"))
        around = f"pid {tmp_path}/pid; error_log {tmp_path}/error; events {{}} daemon off;\n"
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        folders = "".join(f"{kind}_temp_path {tmp_path}/{kind};" for kind in kinds)
        inside = f"{around}http {{ access_log off; {folders}\n{text}}}\n"
        (tmp_path / "nginx.conf").write_text(inside)
        command = ["nginx", "-c", tmp_path / "nginx.conf", "-p", tmp_path]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as nginx:
            try:
                end = time.monotonic() + WITHIN
                while True:
                    try:
                        answer = ask("GET", f"http://127.0.0.1:{front}/live")
                        break
                    except OSError:
                        assert time.monotonic() < end, (tmp_path / "error").read_text()
                        time.sleep(0.02)
            finally:
                nginx.terminate()
        assert answer == {"status": "ok"}


def test_the_paths_that_prometheus_scrapes(pool: Pool) -> None:
    """tests/integration/test_monitoring_examples.py compares the names."""
    text = (EXAMPLES / "monitoring" / "prometheus.yml").read_text(encoding="utf-8")
    paths = re.findall(r"metrics_path: (\S+)", text)
    assert paths
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for path in ("/metrics", *paths):
        with direct.open(pool.url + path, timeout=WITHIN) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=")
            assert b"\n# TYPE sglang_diffusion_router_" in answer.read()


def test_every_example_is_tested() -> None:
    tested = Path(__file__).read_text(encoding="utf-8")
    for example in EXAMPLES.iterdir():
        assert example.name == "README.md" or f'"{example.name}"' in tested, example.name
