"""One round through a running router, as a user would make it, step by step."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import trio
from attrs import define, field

from ..terminal.screen import Screen

_WITHIN = 25.0  # seconds for the whole round
_PROMPT = "a red kite over the sea"


class StepFailed(Exception):
    """A step did not turn out as it must; the message says what was seen."""


class StepSkipped(Exception):
    """This version of the router does not have the endpoint yet."""


@define(eq=False)
class _Round:
    client: httpx.AsyncClient
    workers: list[str] = field(factory=list)

    async def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        """One request. Raises StepFailed unless it is answered with 200."""
        response = await self.client.request(method, path, **options)
        if response.status_code == 501:
            raise StepSkipped(f"{method} {path} is not supported yet")
        if response.status_code != 200:
            raise StepFailed(
                f"{method} {path} answered {response.status_code}: {response.text[:300]}"
            )
        return response


async def check(address: str, screen: Screen) -> bool:
    """Go through the round, print each step with its outcome; whether all went well."""
    failures = 0
    async with httpx.AsyncClient(base_url=address, timeout=_WITHIN, trust_env=False) as client:
        tour = _Round(client)
        with trio.move_on_after(_WITHIN) as scope:
            for name, step in _STEPS:
                begun = trio.current_time()
                try:
                    with screen.progress() as show:
                        show(f"{name} ...")
                        outcome = "ok", await step(tour)
                except StepSkipped as skipped:
                    outcome = "skipped", str(skipped)
                except StepFailed as failed:
                    outcome = "FAILED", str(failed)
                except (httpx.HTTPError, LookupError, TypeError, ValueError) as error:
                    # No answer, or one of another shape than a user would expect.
                    outcome = "FAILED", f"{type(error).__name__}: {error}"
                failures += outcome[0] == "FAILED"
                seconds = trio.current_time() - begun
                screen.say(f"{outcome[0]:8}{name}: {outcome[1]} ({seconds:.1f} s)")
        if scope.cancelled_caught:
            screen.say(f"FAILED  the check did not finish within {_WITHIN:g} s")
            failures += 1
    screen.say("check passed" if not failures else f"check failed: {failures} step(s)")
    return not failures


async def _register(tour: _Round) -> str:
    known = (await tour.call("GET", "/workers")).json()["workers"]
    for worker in known:
        answer = (await tour.call("POST", "/workers", json={"url": worker["url"]})).json()
        if not answer["worker"]["routable"]:
            raise StepFailed(f"{worker['url']} is not routable: {answer['message']}")
        tour.workers.append(worker["url"])
    return f"{len(tour.workers)} workers, all routable"


async def _image(tour: _Round) -> str:
    makers: set[str] = set()
    picture = b""
    for seed in range(len(tour.workers)):
        ask = {"prompt": _PROMPT, "size": "512x512", "seed": seed, "response_format": "b64_json"}
        response = await tour.call("POST", "/v1/images/generations", json=ask)
        makers.add(response.headers.get("x-worker-id", "?"))
        picture = base64.b64decode(response.json()["data"][0]["b64_json"])
    width, height = _png_size(picture)
    if (width, height) != (512, 512):
        raise StepFailed(f"the image is {width}x{height}, not 512x512")
    return f"a {width}x{height} PNG of {len(picture)} bytes; {len(makers)} worker(s) generated"


async def _video(tour: _Round) -> str:
    ask = {"prompt": _PROMPT, "size": "256x256", "seconds": 1, "fps": 8, "num_frames": 8}
    job = (await tour.call("POST", "/v1/videos", json=ask)).json()
    while job["status"] in ("queued", "in_progress"):
        await trio.sleep(0.1)
        job = (await tour.call("GET", f"/v1/videos/{job['id']}")).json()
    if job["status"] != "completed":
        raise StepFailed(f"the job ended as {job['status']}: {job.get('error')}")
    film = (await tour.call("GET", f"/v1/videos/{job['id']}/content")).content
    if film[4:8] != b"ftyp":
        raise StepFailed("the content is not an MP4 file")
    return f"job {job['id']} completed, an MP4 of {len(film)} bytes"


async def _refit(tour: _Round) -> str:
    answer = (
        await tour.call("POST", "/update_weights_from_disk", json={"model_path": "demo/step-1"})
    ).json()
    _expect_all(tour, answer)
    return f"{len(answer['results'])} workers have the weights of demo/step-1"


async def _sleep(tour: _Round) -> str:
    answer = (await tour.call("POST", "/release_memory_occupation", json={})).json()
    _expect_all(tour, answer)
    return f"{len(answer['results'])} workers released their GPU memory"


async def _wake(tour: _Round) -> str:
    answer = (await tour.call("POST", "/resume_memory_occupation", json={})).json()
    _expect_all(tour, answer)
    await _image(tour)
    return f"{len(answer['results'])} workers are awake and generate"


def _expect_all(tour: _Round, answer: dict[str, Any]) -> None:
    rows = answer.get("results", [])
    if len(rows) != len(tour.workers) or any(row["status_code"] != 200 for row in rows):
        raise StepFailed(f"not every worker succeeded: {answer}")


def _png_size(data: bytes) -> tuple[int, int]:
    """Width and height of a PNG. Raises StepFailed if it is none, or is cut off or damaged."""
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        raise StepFailed("the answer contains no PNG")
    at, pixels, kind = 8, b"", b""
    try:
        while kind != b"IEND":
            length, kind = struct.unpack_from(">I4s", data, at)
            chunk = data[at + 8 : at + 8 + length]
            if zlib.crc32(kind + chunk) != struct.unpack_from(">I", data, at + 8 + length)[0]:
                raise StepFailed("the PNG is damaged")
            pixels += chunk if kind == b"IDAT" else b""
            at += 12 + length
        zlib.decompress(pixels)
    except struct.error:
        raise StepFailed("the PNG is cut off") from None
    except zlib.error:
        raise StepFailed("the PNG has damaged pixels") from None
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


Step = Callable[[_Round], Awaitable[str]]

_STEPS: tuple[tuple[str, Step], ...] = (
    ("register", _register),
    ("image", _image),
    ("video", _video),
    ("refit", _refit),
    ("sleep", _sleep),
    ("wake", _wake),
)
