"""`bench`: sends prompts through a router and says how close the pool came to what it could do."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import unquote

import httpx
import trio
from attrs import define, field, frozen

from ..errors import StartError
from ..text import from_json, segment, words
from . import tables
from .client import Client, Refused, connected
from .flags import Bench
from .screen import Screen

_POLL = (0.1, 1.0)  # seconds between two looks at a job: at first, and at most
_TICK = 0.25
_OVER = ("completed", "failed", "cancelled", "deleted")


@frozen
class Sample:
    """One request and what became of it. `work`: seconds that the worker says it generated."""

    kind: str
    seconds: float
    worker: str = ""
    work: float | None = None
    error: str | None = None  # a code


async def measure(settings: Bench) -> int:
    """Run the bench; the exit status."""
    screen = Screen()
    async with connected(settings) as client:
        listed = (await client.ask("GET", "/workers")).get("workers", [])
        ready = [one for one in listed if one.get("routable")]
        slots = sum(one.get("max_concurrency") or 1 for one in ready)
        if not slots:
            raise Refused("no worker of the router is ready")
        load = Load(client, settings, iter(plan(settings.prompts, shares(settings.mix))))
        began = trio.current_time()
        with screen.progress() as show:
            await load.run(show if screen.moves and not settings.json else lambda _: None)
        elapsed = trio.current_time() - began
    names = {one.get("worker_id", ""): tables.name_of(one) for one in listed}
    found = summary(load.samples, elapsed, min(slots, settings.concurrency), names)
    if settings.json:
        screen.json(found)
    else:
        for part in report(found):
            screen.show(part)
    return 1 if found["errors"] else 0


def shares(mix: str) -> dict[str, int]:
    """The shares in `image=3,video=1`. Raises Refused if all are 0."""
    found: dict[str, int] = {}
    for part in mix.split(","):
        kind, _, share = part.partition("=")
        found[kind] = int(share or 1)
    if not any(found.values()):
        raise Refused("--mix has no share above 0")
    return found


def plan(count: int, shares: dict[str, int]) -> list[str]:
    """The kinds of all requests in order, evenly mixed."""
    total, sent, kinds = sum(shares.values()), Counter[str](), []
    for number in range(1, count + 1):
        kind = max(shares, key=lambda kind: shares[kind] * number / total - sent[kind])
        sent[kind] += 1
        kinds.append(kind)
    return kinds


@define(eq=False)
class Load:
    """Sends the requests of `kinds`, some at a time."""

    client: Client
    settings: Bench
    kinds: Iterator[str]
    samples: list[Sample] = field(factory=list)
    _sent: int = 0

    async def run(self, show: Any) -> None:
        """Send them all."""
        began = trio.current_time()

        def tell() -> None:
            failed = sum(one.error is not None for one in self.samples)
            taken = tables.span(trio.current_time() - began)
            show(
                f"sending {self.settings.prompts} prompts ({len(self.samples)} done,"
                f" {self._sent - len(self.samples)} in flight, {failed} failed, {taken})"
            )

        async def tick() -> None:
            while True:
                tell()
                await trio.sleep(_TICK)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(tick)
            async with trio.open_nursery() as senders:
                for _ in range(min(self.settings.concurrency, self.settings.prompts)):
                    senders.start_soon(self._send_some)
            nursery.cancel_scope.cancel()

    async def _send_some(self) -> None:
        for kind in self.kinds:
            self._sent += 1
            number, began = self._sent, trio.current_time()
            try:
                with trio.fail_after(self.settings.within):
                    sample = await (self._video if kind == "video" else self._image)(number)
            except trio.TooSlowError:
                sample = Sample(kind, self.settings.within, error="timeout")
            except httpx.HTTPError as error:
                sample = Sample(kind, 0.0, error=type(error).__name__)
                await trio.sleep(_POLL[0])  # a router that is gone is not asked in a storm
            taken = trio.current_time() - began
            self.samples.append(Sample(kind, taken, sample.worker, sample.work, sample.error))

    def _body(self, number: int) -> dict[str, Any]:
        given = self.settings
        body: dict[str, Any] = {"prompt": f"bench {number}: a red kite over the sea"}
        body |= {"seed": number}
        body |= {"model": given.model} if given.model else {}
        body |= {"size": given.size} if given.size else {}
        body |= {"num_inference_steps": given.steps} if given.steps else {}
        return body

    async def _post(self, path: str, body: dict[str, Any]) -> tuple[Any, str, str | None]:
        timeout = httpx.Timeout(None)
        answer = await self.client.http.post(path, json=body, timeout=timeout)
        said = from_json(answer.content)
        fields = said if isinstance(said, dict) else {}
        error = None
        if not answer.is_success:
            error = words(fields.get("code") or f"status {answer.status_code}")
        return fields, answer.headers.get("x-worker-id", ""), error

    async def _image(self, number: int) -> Sample:
        body = {**self._body(number), "response_format": "b64_json"}
        said, worker, error = await self._post("/v1/images/generations", body)
        return Sample("image", 0.0, worker, _seconds(said), error)

    async def _video(self, number: int) -> Sample:
        body = {**self._body(number), "seconds": self.settings.seconds}
        said, worker, error = await self._post("/v1/videos", body)
        pause, most = _POLL
        while error is None and said.get("status") not in _OVER:
            await trio.sleep(pause)
            pause = min(pause * 1.5, most)
            try:
                said = await self.client.ask("GET", f"/v1/videos/{segment(str(said.get('id')))}")
            except StartError:
                return Sample("video", 0.0, worker, None, "job_lost")
        if error is None and said.get("status") != "completed":
            error = f"job_{said.get('status')}"
        return Sample("video", 0.0, worker, _seconds(said), error)


def _seconds(said: dict[str, Any]) -> float | None:
    value = said.get("inference_time_s")
    return float(value) if isinstance(value, int | float) and value > 0 else None


def percentile(values: Sequence[float], share: float) -> float | None:
    """The least value that this share of all values does not exceed."""
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)), 1) - 1] if ordered else None


def summary(
    samples: Sequence[Sample], elapsed: float, slots: int, names: dict[str, str]
) -> dict[str, Any]:
    """What the bench found. Times in seconds."""
    good = [one for one in samples if one.error is None]
    work = [one.seconds if one.work is None else one.work for one in good]
    bound = max(sum(work) / slots, max(work)) if work else 0.0
    made = Counter(one.worker for one in good)
    busy: dict[str, float] = {}
    for one, seconds in zip(good, work, strict=True):
        busy[one.worker] = busy.get(one.worker, 0.0) + seconds
    kinds = {one.kind: None for one in samples}
    return {
        "prompts": len(samples),
        "succeeded": len(good),
        "errors": dict(Counter(one.error for one in samples if one.error is not None)),
        "seconds": round(elapsed, 3),
        "per_second": round(len(good) / elapsed, 3) if elapsed else None,
        "slots": slots,
        "work_seconds": round(sum(work), 3),
        "work_reported": sum(one.work is not None for one in good),
        "bound_seconds": round(bound, 3),
        "over_bound": round(elapsed / bound, 3) if bound else None,
        "latency_seconds": {
            kind: {
                f"p{share}": _rounded(percentile(_times(good, kind), share / 100))
                for share in (50, 90, 99)
            }
            for kind in kinds
        },
        "workers": [
            {
                "worker_id": worker,
                "name": names.get(worker) or unquote(worker) or "unknown",
                "succeeded": count,
                "work_seconds": round(busy[worker], 3),
            }
            for worker, count in made.most_common()
        ],
    }


def _times(samples: Sequence[Sample], kind: str) -> list[float]:
    return [one.seconds for one in samples if one.kind == kind]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def report(found: dict[str, Any]) -> list[Any]:
    """The summary for people."""
    errors = ", ".join(f"{count} {code}" for code, count in found["errors"].items())
    over = f"{found['over_bound']:.2f} times" if found["over_bound"] else tables.NONE
    rows = [
        ("prompts", f"{found['prompts']}, {found['succeeded']} succeeded"),
        ("errors", errors or "none"),
        ("time", tables.span(found["seconds"])),
        ("throughput", f"{found['per_second']} per second"),
        ("bound", f"{tables.span(found['bound_seconds'])} on {found['slots']} slots"),
        ("over the bound", over),
    ]
    kinds = [
        (kind, *(tables.span(times[name]) for name in ("p50", "p90", "p99")))
        for kind, times in found["latency_seconds"].items()
    ]
    workers = [
        (tables.say(one["name"]), str(one["succeeded"]), tables.span(one["work_seconds"]))
        for one in found["workers"]
    ]
    shown: list[Any] = [tables.pairs(rows), ""]
    shown.append(tables.table("KIND", "P50", "P90", "P99", right=("P50", "P90", "P99"), rows=kinds))
    if workers:
        columns = ("WORKER", "MADE", "WORK")
        shown += ["", tables.table(*columns, right=columns[1:], rows=workers)]
    return shown
