"""A router in front of two image workers and a video worker, real or simulated."""

from __future__ import annotations

import base64
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
from attrs import frozen

from tests.contract.harness import IMAGE, PATIENCE, TINY, Process, Worker, eventually

FLUX, WAN = TINY["image"][1], TINY["video"][1]


@frozen
class Pool:
    """A router in front of two image workers and one video worker."""

    http: httpx.Client
    flux: tuple[Worker, Worker]
    wan: Worker

    @property
    def workers(self) -> tuple[Worker, ...]:
        return (*self.flux, self.wan)

    def post(self, path: str, **body: Any) -> httpx.Response:
        answer = self.http.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return answer

    def change(self, path: str, **body: Any) -> dict[str, Any]:
        """A change that both image workers have to take."""
        told = self.post(f"{path}?model={FLUX}", **body).json()
        rows = told["results"]
        assert sorted(row["worker_url"] for row in rows) == sorted(w.url for w in self.flux)
        assert {row["status_code"] for row in rows} == {200}, told
        return told  # type: ignore[no-any-return]

    def picture(self, **changes: Any) -> bytes:
        """A PNG through the router."""
        inline = {"response_format": "b64_json", "output_format": "png"}
        told = self.post("/v1/images/generations", **{**IMAGE, **inline, **changes}).json()
        return base64.b64decode(told["data"][0]["b64_json"])

    def all_routable(self) -> bool:
        listed = self.http.get("/workers").json()["workers"]
        return len(listed) == len(self.workers) and all(w["routable"] for w in listed)

    def ids(self, *workers: Worker) -> str:
        """Their ids, as `?workers=` takes them."""
        urls = {worker.url for worker in workers}
        listed = self.http.get("/workers").json()["workers"]
        return ",".join(w["worker_id"] for w in listed if w["url"] in urls)

    def version(self) -> int:
        """That of the image model's weights, as an image tells."""
        told = self.post("/v1/images/generations", model=FLUX, **IMAGE)
        return int(told.headers["x-weight-version"])

    def sums(self) -> dict[str, str]:
        """The checksums of the image workers, which must be the same."""
        told = self.post(f"/get_weights_checksum?model={FLUX}").json()
        assert told["consistent"] is True, told
        first, *others = (worker.checksums() for worker in self.flux)
        assert [first] == others == [told["results"][0]["body"]]
        return first


@contextmanager
def router_before(workers: list[Worker], logs: Path, *flags: str) -> Iterator[httpx.Client]:
    """A client of a new router in front of these workers. Not waited for."""
    program = os.environ.get("ROUTER_PYZ")
    command = [sys.executable, *([program] if program else ["-m", "router"]), "--port", "0"]
    command += ["--health-check-interval", "1", *flags]
    if workers:
        command += ["--worker-urls", *(w.url for w in workers)]
    command += [
        "--ejection-failures",
        "none",
    ]  # some tests have only one worker fail, again and again
    with ExitStack() as stack:
        process = Process.start(logs / "router.log", *command)
        stack.callback(process.stop)
        url = process.says(r"listening on (http://\S+)")
        yield stack.enter_context(httpx.Client(base_url=url, timeout=PATIENCE, trust_env=False))


@contextmanager
def routed(workers: list[Worker], logs: Path) -> Iterator[Pool]:
    """The pool of two image workers and a video worker."""
    one, two, video = workers
    with router_before(workers, logs) as client:
        pool = Pool(client, (one, two), video)
        eventually(pool.all_routable)
        yield pool
