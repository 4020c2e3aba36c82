"""A walk through the router with nothing but the standard library: register, list and update
workers, make an image and a video and save them, refit, sleep, wake.

Usage: python3 examples/walkthrough.py --router http://localhost:30081 [--worker http://HOST:PORT]

Without --worker one that is registered already is registered again, which does no harm. Where the
router wants an admin key, put it into the environment variable ROUTER_ADMIN_KEY.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import quote

TIMEOUT = 1800  # seconds; a generation may wait behind others


class Router:
    """The few calls that a client needs."""

    def __init__(self, url: str, key: str | None) -> None:
        self.url = url.rstrip("/")
        self.key = key

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON of an answer. Raises urllib.error.HTTPError."""
        return json.loads(self.fetch(method, path, body))

    def fetch(self, method: str, path: str, body: Any = None) -> bytes:
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            content: bytes = response.read()
            return content


def workers(router: Router, worker: str | None) -> None:
    if worker is None:
        worker = router.call("GET", "/workers")["workers"][0]["url"]
    print("register:", router.call("POST", "/workers", {"url": worker})["message"])
    for known in router.call("GET", "/workers")["workers"]:
        print(f"  {known['url']} routable={known['routable']} makes {known['task_types']}")
    path = f"/workers/{quote(str(worker), safe='')}"
    changed = router.call("PUT", path, {"max_concurrency": 2})["worker"]
    print("update: max_concurrency is", changed["max_concurrency"])
    router.call("PUT", path, {"max_concurrency": None})  # what the worker says of itself


def image(router: Router, file: Path) -> None:
    request = {
        "prompt": "a red kite over the sea",
        "size": "512x512",
        "seed": 7,
        "response_format": "b64_json",
        "output_format": "png",  # the default is JPEG
    }
    answer = router.call("POST", "/v1/images/generations", request)
    file.write_bytes(base64.b64decode(answer["data"][0]["b64_json"]))
    print(f"image: {file}, {file.stat().st_size} bytes")


def video(router: Router, file: Path) -> None:
    request = {"prompt": "a red kite over the sea", "size": "256x256", "seconds": 1}
    job = router.call("POST", "/v1/videos", request)  # comes at once; the work goes on
    while job["status"] not in ("completed", "failed"):
        time.sleep(0.5)
        job = router.call("GET", f"/v1/videos/{job['id']}")
    if job["status"] == "failed":
        sys.exit(f"the video failed: {job['error']}")
    file.write_bytes(router.fetch("GET", f"/v1/videos/{job['id']}/content"))
    print(f"video: {file}, {file.stat().st_size} bytes")
    listed = router.call("GET", "/v1/videos?limit=1")["data"]
    print("newest job:", listed[0]["id"], listed[0]["status"])
    router.call("DELETE", f"/v1/videos/{job['id']}")


def weights(router: Router, model: str, path: str) -> None:
    which = f"?model={quote(model, safe='')}"  # needed only where the pool serves several
    told = router.call("POST", f"/update_weights_from_disk{which}", {"model_path": path})
    print(f"refit: {len(told['results'])} workers, {len(told['deferred'])} left out")
    sums = router.call("POST", f"/get_weights_checksum{which}", {"module_names": None})
    print("all have the same weights:", sums["consistent"])


def memory(router: Router, model: str) -> None:
    which = f"?model={quote(model, safe='')}"
    asleep = router.call("POST", f"/release_memory_occupation{which}", {})
    print(f"sleep: {len(asleep['results'])} workers gave their GPU memory back")
    print("again:", router.call("POST", f"/release_memory_occupation{which}", {})["message"])
    awake = router.call("POST", f"/resume_memory_occupation{which}", {})
    print(f"wake: {len(awake['results'])} workers are back")


def main() -> int:
    parser = argparse.ArgumentParser(description="A walk through the router.")
    parser.add_argument("--router", default="http://localhost:30081")
    parser.add_argument("--worker", help="the worker to register")
    parser.add_argument("--weights", help="where to load weights from; default: the same again")
    parser.add_argument("--output", type=Path, default=Path(), help="folder for the files")
    options = parser.parse_args()
    router = Router(options.router, os.environ.get("ROUTER_ADMIN_KEY"))
    try:
        workers(router, options.worker)
        model = router.call("GET", "/v1/models")["data"][0]["id"]
        print("model:", model)
        image(router, options.output / "kite.png")
        video(router, options.output / "kite.mp4")
        weights(router, model, options.weights or model)
        memory(router, model)
        image(router, options.output / "kite_after.png")
    except urllib.error.HTTPError as error:
        # The router's own errors have `error` and `code`; a worker's pass as they are.
        print(f"{error.code} {error.url}: {error.read().decode()}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
