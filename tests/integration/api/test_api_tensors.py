"""Tensor updates: bodies of any size, copied to all workers as they come."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.integration.api.pools import IMAGES, VIDEOS, Member, RunPool, is_ours
from tests.integration.deployment import Deployment, answer, never, until
from tests.patience import fail_after

PATH = "/update_weights_from_tensor"
MIB = 1024 * 1024
HEAD, TAIL = b'{"serialized_named_tensors": ["', b'"]}'
STATM = Path("/proc/self/statm")
SAME_MODEL = {"/v1/models": answer(200, {"data": [{"id": "image/a", "task_type": "T2I"}]})}


class Body:
    """A body of that many bytes, and its digest once it was sent. It stops at `pause_at`."""

    def __init__(self, size: int, *, pause_at: int | None = None, begin: bytes = HEAD) -> None:
        self.size = size
        self.pause_at = pause_at
        self.begin = begin
        self.resume = trio.Event()
        self.sent = 0
        self.digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        return self.digest.hexdigest()

    def pieces(self) -> Iterator[bytes]:
        left = self.size - len(self.begin) - len(TAIL)
        yield self.begin
        piece = b"A" * (256 * 1024)
        while left:
            yield piece[:left]
            left -= len(piece[:left])
        yield TAIL

    async def send(self, stream: trio.SocketStream, *, chunked: bool) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            for piece in self.pieces():
                if self.pause_at is not None and self.sent >= self.pause_at:
                    await self.resume.wait()
                await stream.send_all(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
                self.digest.update(piece)
                self.sent += len(piece)
            await stream.send_all(b"0\r\n\r\n" if chunked else b"")


async def post(
    pool: Deployment, body: Body, *, announced: bool = False, workers: str = ""
) -> tuple[int, Any]:
    """Send the body and read the answer meanwhile; its status and JSON. (0, None): there is none.

    Not by a library: they leave generators behind where an answer comes early.
    """
    framing = f"content-length: {body.size}" if announced else "transfer-encoding: chunked"
    query = f"?workers={workers}" if workers else ""
    head = f"POST {PATH}{query} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{framing}\r\n\r\n"
    said = b""
    async with await trio.open_tcp_stream("127.0.0.1", pool.running.port) as stream:
        await stream.send_all(head.encode())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(body.send, stream, chunked=not announced))
            with suppress(trio.BrokenResourceError):
                while (piece := await stream.receive_some()) and not said.endswith(b"}\n"):
                    said += piece
            nursery.cancel_scope.cancel()
    first, _, content = said.partition(b"\r\n\r\n")
    return (int(first[9:12]), json.loads(content)) if content else (0, None)


def rss() -> int:
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def whole(member: Member) -> bool:
    return any(entry.body_sha256 for entry in member.asked("POST", PATH))


def nothing_whole(*members: Member) -> bool:
    entries = [entry for member in members for entry in member.asked("POST", PATH)]
    return bool(entries) and all(entry.body_sha256 is None for entry in entries)


@pytest.mark.skipif(not STATM.exists(), reason="there is no /proc")
def test_a_large_body_is_copied_to_all_in_bounded_memory(run_pool: RunPool) -> None:
    async def test(pool: Deployment, *members: Member) -> None:
        warm = Body(4 * MIB)
        assert (await post(pool, warm))[0] == 200
        before, most = rss(), 0

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, rss())
                await trio.sleep(0.01)

        body = Body(200 * MIB)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            status, said = await post(pool, body)
            nursery.cancel_scope.cancel()
        assert (status, len(said["results"])) == (200, 3)
        for member in members:
            entry = member.asked("POST", PATH)[-1]
            assert (entry.body_bytes, entry.body_sha256) == (body.size, body.sha256)
        assert most - before < 40 * MIB

    run_pool(test, IMAGES, IMAGES, IMAGES, health_check_interval=5.0)


def test_a_body_of_announced_length(run_pool: RunPool) -> None:
    async def test(pool: Deployment, *members: Member) -> None:
        body = Body(5 * MIB)
        assert (await post(pool, body, announced=True))[0] == 200
        for member in members:
            [entry] = member.asked("POST", PATH)
            assert entry.body_sha256 == body.sha256
            headers = {name.lower(): value for name, value in entry.headers}
            assert headers["content-length"] == str(body.size)
            assert "transfer-encoding" not in headers

    run_pool(test, IMAGES, IMAGES, max_request_bytes=MIB)  # which does not count here


@pytest.mark.parametrize("how", ["chunked", "announced", "within the first bytes"])
def test_a_body_that_breaks_off_is_whole_for_nobody(run_pool: RunPool, how: str) -> None:
    async def test(pool: Deployment, *members: Member) -> None:
        before = [member.sim.scheduler.weights.identity for member in members]
        body = Body(8 * MIB, pause_at=3 * MIB if how != "within the first bytes" else MIB // 2)
        with trio.CancelScope() as leaving:

            async def leave() -> None:
                if how == "within the first bytes":
                    await until(lambda: body.sent >= body.pause_at)
                else:
                    await until(lambda: all(member.asked("POST", PATH) for member in members))
                await trio.sleep(0.05)
                leaving.cancel()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(leave)
                await post(pool, body, announced=how == "announced")
        assert leaving.cancelled_caught
        await trio.sleep(0.1)
        if how == "within the first bytes":
            assert not any(member.asked("POST", PATH) for member in members)
        else:
            for member in members:
                await until(lambda m=member: m.asked("POST", PATH)[0].end is not None)
            assert nothing_whole(*members)
        assert [member.sim.scheduler.weights.identity for member in members] == before
        assert (await post(pool, Body(2 * MIB)))[0] == 200

    run_pool(test, IMAGES, IMAGES)


def test_a_client_that_stalls_is_told(run_pool: RunPool) -> None:
    async def test(pool: Deployment, *members: Member) -> None:
        for pause in (MIB // 2, 3 * MIB):
            status, said = await post(pool, Body(8 * MIB, pause_at=pause), announced=True)
            assert (status, said["code"]) == (408, "client_timeout")
            assert said["request_id"]
        assert nothing_whole(*members)

    run_pool(test, IMAGES, IMAGES, idle_timeout=0.5)


def test_a_target_that_stalls_is_dropped_and_the_others_finish(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        stalled = [await pool.script(**{PATH: never}, **SAME_MODEL) for _ in range(8)]
        for script in stalled:
            await pool.register(script.url)
        body = Body(40 * MIB)
        urls = [a.url, *(script.url for script in stalled), b.url]
        with fail_after(8):  # all are given up at the same time, not one after the other
            status, said = await post(pool, body, workers=",".join(urls))
        assert status == 502
        rows = said["results"]
        assert [row["status_code"] for row in rows] == [200, *[504] * 8, 200]
        assert rows[1]["body"]["code"] == "worker_timeout"
        assert rows[1]["body"]["success"] is False
        assert "took no more of the body for 1 s" in rows[1]["body"]["error"]
        for member in (a, b):
            assert member.asked("POST", PATH)[0].body_sha256 == body.sha256

    run_pool(test, IMAGES, IMAGES, idle_timeout=1.0, health_check_interval=1.0)


def test_a_target_that_stalls_at_the_end(run_pool: RunPool) -> None:
    """What it does not take fits into the window: nobody waits to give it another piece."""

    async def test(pool: Deployment, a: Member) -> None:
        async def dumb(stream: trio.SocketStream) -> None:
            await trio.sleep_forever()

        script = await pool.script(**{PATH: dumb}, **SAME_MODEL)
        await pool.register(script.url)
        names = f"{a.url},{script.url}"
        _, said = await post(
            pool, Body(9 * MIB), workers=names
        )  # hardly more than the kernel takes
        assert [row["status_code"] for row in said["results"]] == [200, 504]

    run_pool(test, IMAGES, idle_timeout=0.5, refit_timeout=3.0, health_check_interval=1.0)


def test_a_target_that_dies_is_a_row(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        body = Body(30 * MIB, pause_at=5 * MIB)
        answers: list[tuple[int, Any]] = []

        async def send() -> None:
            answers.append(await post(pool, body))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await until(lambda: b.asked("POST", PATH))
            b.sim.kill()
            body.resume.set()
        [(status, said)] = answers
        assert status == 502
        assert [row["status_code"] for row in said["results"]] == [200, 502]
        assert a.asked("POST", PATH)[0].body_sha256 == body.sha256

    run_pool(test, IMAGES, IMAGES)


def test_once_all_have_gone_no_more_is_read(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        body = Body(5000 * MIB)
        answers: list[int] = []

        async def send() -> None:
            answers.append((await post(pool, body))[0])

        with fail_after(8):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                await until(lambda: a.asked("POST", PATH))
                a.sim.kill()
        assert answers == [502]
        assert body.sent < 1000 * MIB

    run_pool(test, IMAGES)


def test_a_client_that_leaves_after_its_last_byte(run_pool: RunPool) -> None:
    async def test(pool: Deployment, *members: Member) -> None:
        before = members[0].sim.scheduler.weights.identity
        body = Body(3 * MIB)
        with trio.CancelScope() as leaving:

            async def leave() -> None:
                for member in members:  # each has it whole, and has only begun
                    await until(lambda m=member: whole(m))
                leaving.cancel()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(leave)
                await post(pool, body)
        assert leaving.cancelled_caught
        for member in members:
            await until(lambda m=member: m.sim.scheduler.weights.identity != before)
            assert member.asked("POST", PATH)[0].body_sha256 == body.sha256
            assert member.asked("POST", PATH)[0].client_gone is None

    slow = {**IMAGES, "time_scale": 10.0}  # 2 s for the update
    run_pool(test, slow, slow)


@pytest.mark.parametrize("begin", [b"[", b"  \r\n[", b"x", b"PK\x03"])
def test_what_cannot_be_an_object_reaches_nobody(run_pool: RunPool, begin: bytes) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        with fail_after(5):
            status, said = await post(pool, Body(3 * MIB, begin=begin))
        assert (status, said["code"]) == (400, "invalid_json")
        assert a.asked("POST", PATH) == []

    run_pool(test, IMAGES)


def test_a_small_body_in_chunks_is_checked_too(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        async def chunks(*pieces: bytes) -> AsyncIterator[bytes]:
            for piece in pieces:
                yield piece

        answer = await pool.http.post(PATH, content=chunks(b'{"model_', b'path": "x"}'))
        is_ours(answer, 400, "missing_field")
        answer = await pool.http.post(PATH, content=chunks(b'{"seria'))
        is_ours(answer, 400, "invalid_json")
        assert a.asked("POST", PATH) == []
        answer = await pool.http.post(PATH, content=chunks(HEAD, b"eyJhIjogIjEifQ==", TAIL))
        assert answer.status_code == 200, answer.text

    run_pool(test, IMAGES)


def test_an_ambiguous_target_is_refused_before_the_upload(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        with fail_after(3):
            status, said = await post(pool, Body(3 * MIB, pause_at=MIB // 2), announced=True)
        assert (status, said["code"]) == (400, "ambiguous_target")
        assert a.asked("POST", PATH) == b.asked("POST", PATH) == []

    run_pool(test, IMAGES, VIDEOS)
