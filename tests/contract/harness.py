"""The workers that the contract is tested on, real or simulated, and what the tests share."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import trio
from attrs import define, field, frozen

ROOT = Path(__file__).resolve().parents[2]
REAL = Path(__file__).resolve().parent / "real"
PATIENCE = 120.0  # seconds for anything that ends by itself; a real worker on a busy CPU is slow

IMAGE = {"prompt": "a cat", "size": "64x64", "num_inference_steps": 2, "seed": 7}
VIDEO = {**IMAGE, "num_frames": 5}
ROLLOUT = {"prompt": "a cat", "width": 64, "height": 64, "num_inference_steps": 2, "seed": 7}

TENSOR = "context_embedder.bias"  # of a Flux transformer
TINY = {  # the models of real/tiny_models.py: their folder, and the name they are served under
    "image": ("FLUX.1-dev", "tiny-flux"),
    "video": ("Wan2.1-T2V-1.3B-Diffusers", "tiny-wan"),
}


@frozen
class Worker:
    """One worker. `kind` says what it makes: image, video, or (simulated ones only) more."""

    url: str
    kind: str
    name: str
    weights: str
    """The model path that it was started with."""
    other_weights: str = ""
    lora: str = ""
    real: bool = False
    http: httpx.Client = field(kw_only=True)
    """Makes a new connection for each request: see test_http for what happens to old ones."""

    @classmethod
    def at(cls, url: str, kind: str, **settings: Any) -> Worker:
        limits = httpx.Limits(max_keepalive_connections=0)
        client = httpx.Client(base_url=url, timeout=PATIENCE, trust_env=False, limits=limits)
        return cls(url, kind, http=client, **settings)

    @property
    def address(self) -> tuple[str, int]:
        url = httpx.URL(self.url)
        assert url.port is not None
        return url.host, url.port

    @property
    def while_(self) -> float:
        """Seconds that a piece of work takes which is to be noticed: see `steps`."""
        return 1.5 if self.real else 0.6

    def image(self, **changes: Any) -> dict[str, Any]:
        """The answer to a small image request."""
        answer = self.http.post("/v1/images/generations", json={**IMAGE, **changes})
        assert answer.status_code == 200, answer.text
        return answer.json()  # type: ignore[no-any-return]

    def picture(self, **changes: Any) -> bytes:
        """The PNG of a small image."""
        told = self.image(output_format="png", **changes)
        return self.http.get(told["data"][0]["url"]).raise_for_status().content

    def video(self, **changes: Any) -> dict[str, Any]:
        """The answer to the submission of a small video job."""
        answer = self.http.post("/v1/videos", json={**VIDEO, **changes})
        assert answer.status_code == 200, answer.text
        return answer.json()  # type: ignore[no-any-return]

    def until(self, id: str, *statuses: str) -> dict[str, Any]:
        """The job once it is in one of these (default: final) statuses."""
        wanted = statuses or ("completed", "failed")

        def job() -> dict[str, Any] | None:
            told = self.http.get(f"/v1/videos/{id}").raise_for_status().json()
            return told if told["status"] in wanted else None

        return eventually(job)

    def checksums(self, *names: str) -> dict[str, str]:
        answer = self.http.post("/get_weights_checksum", json={"module_names": names or None})
        assert answer.status_code == 200, answer.text
        return answer.json()  # type: ignore[no-any-return]

    def load(self, path: str, **more: Any) -> httpx.Response:
        return self.http.post("/update_weights_from_disk", json={"model_path": path, **more})

    def idle(self) -> float:
        """Waits behind whatever the worker does; the seconds that took."""
        began = time.monotonic()
        self.http.get("/v1/list_loras").raise_for_status()
        return time.monotonic() - began


@cache
def steps(worker: Worker) -> int:
    """How many steps make a generation last at least about `worker.while_` seconds."""
    count = 100
    # The quicker of two: something else may have slowed one of them down.
    while (seconds := min(_seconds_of(worker, count) for _ in "ab")) < worker.while_:
        count = round(count * max(1.3, min(20, 1.1 * worker.while_ / max(seconds, 0.001))))
    return count


def _seconds_of(worker: Worker, count: int) -> float:
    if worker.kind == "video":
        id = worker.video(num_inference_steps=count)["id"]
        return float(worker.until(id)["inference_time_s"])
    return float(worker.image(num_inference_steps=count)["inference_time_s"])


def long_request(worker: Worker, **changes: Any) -> dict[str, Any]:
    base = VIDEO if worker.kind == "video" else IMAGE
    return {**base, "num_inference_steps": steps(worker), **changes}


def eventually(attempt: Callable[[], Any]) -> Any:
    """What `attempt` returns as soon as that is true."""
    end = time.monotonic() + PATIENCE
    while True:
        if made := attempt():
            return made
        assert time.monotonic() < end, f"waited {PATIENCE} s in vain"
        time.sleep(0.02)


@frozen
class Timed:
    """An answer, and when it came: seconds after the first of its group was sent."""

    answer: httpx.Response
    seconds: float


def together(worker: Worker, *calls: tuple[str, str, Any], gap: float = 0.1) -> list[Timed]:
    """Sends requests (method, path, JSON), each `gap` seconds after the one before it."""
    done: dict[int, Timed] = {}

    async def main() -> None:
        async with (
            httpx.AsyncClient(base_url=worker.url, timeout=PATIENCE, trust_env=False) as client,
            trio.open_nursery() as nursery,
        ):
            began = trio.current_time()

            async def send(number: int) -> None:
                method, path, body = calls[number]
                answer = await client.request(method, path, json=body)
                done[number] = Timed(answer, trio.current_time() - began)

            for number in range(len(calls)):
                nursery.start_soon(send, number)
                await trio.sleep(gap)

    trio.run(main)
    return [done[number] for number in range(len(calls))]


@contextlib.contextmanager
def connection(worker: Worker) -> Iterator[socket.socket]:
    with socket.create_connection(worker.address, timeout=PATIENCE) as sock:
        yield sock


def head(method: str, path: str, *lines: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: worker", *lines, "", ""]).encode()


def read_answer(sock: socket.socket) -> tuple[str, dict[str, str], bytes]:
    """Status line, headers (names as sent) and body (by its length) of the next answer."""
    stream = sock.makefile("rb")
    status = stream.readline().decode().strip()
    headers = {}
    while line := stream.readline().decode().strip():
        name, _, value = line.partition(": ")
        headers[name] = value
    length = int({name.lower(): v for name, v in headers.items()}.get("content-length", 0))
    return status, headers, stream.read(length)


def ended(sock: socket.socket, within: float) -> float | None:
    """The seconds until the other side closed, None if it did not `within` so many."""
    began = time.monotonic()
    sock.settimeout(within)
    try:
        data = sock.recv(1)
    except TimeoutError:
        return None
    except ConnectionResetError:
        data = b""
    assert not data
    return time.monotonic() - began


@frozen
class Push:
    """A tensor as a trainer sends it, and the digests under which it can be checked."""

    body: dict[str, Any]
    sha256: dict[str, str]


def push(worker: Worker, *, lora: bool = False) -> Push | None:
    """A tensor of the other weights, or the tensors of the adapter. None where nothing can make
    them."""
    mode = {"weight_update_mode": "lora_merge"} if lora else {}
    if not worker.real:
        sha256 = {TENSOR: "0" * 64}
        payload = base64.b64encode(json.dumps(sha256).encode()).decode()
        return Push({"serialized_named_tensors": [payload], **mode}, sha256)
    python = os.environ.get("REAL_PYTHON")
    if python is None:
        return None
    wanted = [worker.lora] if lora else [f"{worker.other_weights}/transformer", TENSOR]
    command = [python, str(REAL / "payload.py"), *wanted]
    made = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return Push({"serialized_named_tensors": [made["payload"]], **mode}, made["sha256"])


@define
class Process:
    """A process that a test started, in a group of its own; `stop` ends what is left of it."""

    running: subprocess.Popen[bytes]
    log: Path

    @classmethod
    def start(cls, log: Path, *command: str | Path) -> Process:
        inherited = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
        path = os.pathsep.join([str(ROOT), str(ROOT / "sglang")])
        with log.open("wb") as output:
            running = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**inherited, "PYTHONPATH": path},
                cwd=log.parent,
                start_new_session=True,
            )
        return cls(running, log)

    def says(self, pattern: str) -> str:
        """The first group of `pattern`, once the process has written it."""

        def look() -> str | None:
            text = self.log.read_text(encoding="utf-8", errors="replace")
            assert self.running.poll() is None, text
            found = re.search(pattern, text)
            return found and found[1]

        return str(eventually(look))

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.running.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.running.wait(5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.running.pid, signal.SIGKILL)
        self.running.wait()


TIME_SCALE = "0.1"
SIMULATED = {  # what a role is simulated with; `more` is what no real worker here can do
    "image": ("image", ["T2I"]),
    "video": ("video", ["T2V"]),
    "lora": ("image", ["T2I"]),
    "more": ("more", ["TI2I", "I2M", "VLA_ACTION"]),
}


def start_simulated(role: str, log: Path, *flags: str) -> tuple[Worker, Process]:
    """A simulated worker in a process of its own; not waited for."""
    model = ["--port", "0", "--model-path", simulated(role, "http://unused").weights]
    process = Process.start(log, *simulation(role), *model, *flags)
    try:
        url = process.says(r"serving .* on (http://\S+)")
    except BaseException:
        process.stop()
        raise
    return simulated(role, url), process


def simulation(role: str) -> list[str]:
    """The command of a simulated worker, less its port and its model."""
    kind, tasks = SIMULATED[role]
    command = [sys.executable, "-m", "simulated_worker", "--time-scale", TIME_SCALE]
    command += ["--served-model-name", TINY.get(kind, ("more", "tiny-more"))[1]]
    command += ["--supported-task-types", ",".join(tasks)]
    return [*command, "--load-seconds", "0.1", "--warmup-seconds", "0"]


def simulated(role: str, url: str) -> Worker:
    """A simulated worker, and paths that name its weights."""
    kind, _ = SIMULATED[role]
    folder, name = TINY.get(kind, ("more", "tiny-more"))
    paths = {"other_weights": f"models/{folder}-other", "lora": "models/lora"}
    return Worker.at(url, kind, name=name, weights=f"models/{folder}", **paths)


def start_several(roles: Sequence[str], logs: Path, stack: ExitStack) -> list[Worker]:
    """A simulated worker for each role, at once; `stack` ends them."""

    def begin(number: int) -> tuple[Worker, Process]:
        return start_simulated(roles[number], logs / f"{number}.log")

    made = []
    with ThreadPoolExecutor(len(roles)) as threads:
        for future in [threads.submit(begin, number) for number in range(len(roles))]:
            worker, process = future.result()
            stack.callback(process.stop)
            made.append(worker)
    return made


def real_worker(role: str, url: str) -> Worker:
    """A real worker with the models of real/tiny_models.py."""
    kind = "video" if role == "video" else "image"
    folder, name = TINY[kind]
    models = Path(os.environ["REAL_MODELS"])
    paths = {"other_weights": str(models / f"{folder}-other"), "lora": str(models / "lora")}
    return Worker.at(url, kind, name=name, weights=str(models / folder), real=True, **paths)
