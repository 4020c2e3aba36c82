"""Sessions: realtime video, one at a time, and policies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
import trio
import wsproto
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    Pong,
    RejectConnection,
    Request,
    TextMessage,
)

from simulated_worker import SimulatedWorker, WorkerConfig, serve, websockets
from simulated_worker.msgpack import decode, encode
from tests.patience import fail_after

Run = Callable[..., None]
REALTIME = "/v1/realtime_video/generate"
INIT: dict[str, Any] = {"type": "init", "prompt": "x", "size": "32x16", "max_chunks": 2}


class Client:
    """A WebSocket client of a worker."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.protocol = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
        self.waiting: list[Any] = []
        self.parts: list[bytes] = []

    @classmethod
    async def open(cls, worker: SimulatedWorker, path: str) -> Client:
        client = cls(await trio.open_tcp_stream("127.0.0.1", worker.port))
        await client.send(Request(host="w", target=path))
        return client

    async def send(self, event: Any) -> None:
        await self.stream.send_all(self.protocol.send(event))

    async def event(self) -> Any:
        """The next event; messages are joined."""
        while True:
            while self.waiting:
                event = self.waiting.pop(0)
                if isinstance(event, BytesMessage):
                    self.parts.append(bytes(event.data))
                    if not event.message_finished:
                        continue
                    whole, self.parts = b"".join(self.parts), []
                    return BytesMessage(whole)
                return event
            self.protocol.receive_data(await self.stream.receive_some() or None)
            self.waiting.extend(self.protocol.events())

    async def message(self) -> Any:
        event = await self.event()
        assert isinstance(event, BytesMessage), event
        return decode(bytes(event.data))


def test_chunks_arrive_until_the_session_is_complete(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        ws = await Client.open(worker, REALTIME)
        async with ws.stream:
            opened = await ws.event()
            assert isinstance(opened, AcceptConnection)
            assert opened.extensions == []
            await ws.send(BytesMessage(encode({"type": "init"})))
            assert await ws.message() == {"type": "error", "content": "invalid generate request"}
            await ws.send(TextMessage("x"))
            assert await ws.message() == {"type": "error", "content": "invalid generate request"}
            await ws.send(BytesMessage(encode(INIT)))
            for index in (0, 1):
                header = await ws.message()
                assert (header["type"], header["chunk_index"]) == ("frame_batch_header", index)
                frames = await ws.event()
                assert len(frames.data) == header["total_size"] == 3 * 32 * 16 * 3
                assert (await ws.message())["type"] == "chunk_stats"
            closed = await ws.event()
            assert isinstance(closed, CloseConnection)
            assert (closed.code, closed.reason) == (1000, "generation complete")

    run_worker(test, model_path="wan")


def test_events_pings_and_fragments(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        ws = await Client.open(worker, REALTIME)
        async with ws.stream:
            await ws.event()
            await ws.send(Ping(b"p"))
            pong = await ws.event()
            assert isinstance(pong, Pong)
            assert bytes(pong.payload) == b"p"
            init = encode({**INIT, "max_chunks": None})
            await ws.send(BytesMessage(init[:5], message_finished=False))
            await ws.send(BytesMessage(init[5:]))
            await ws.send(BytesMessage(encode({"type": "event", "kind": "k", "event_id": 9})))
            await ws.send(BytesMessage(b"\xc1"))
            seen: list[Any] = []
            while len(seen) < 2:
                event = await ws.event()
                if len(event.data) == 3 * 32 * 16 * 3:
                    continue
                told = decode(bytes(event.data))
                if told.get("event_id") == 9 and "event" not in seen:
                    seen.append("event")
                if told == {"type": "error", "content": "invalid event"}:
                    seen.append("error")

    run_worker(test, model_path="wan")


def test_a_second_session_is_closed_with_1008(
    run_worker: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simulated_worker.api_realtime._SLOT_SECONDS", 0.05)

    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        first, second = [await Client.open(worker, REALTIME) for _ in range(2)]
        for ws in (first, second):
            await ws.event()
        await first.send(BytesMessage(encode({**INIT, "max_chunks": None})))
        await first.message()
        await second.send(BytesMessage(encode(INIT)))
        assert (await second.message())["content"] == "another realtime session is already active"
        closed = await second.event()
        assert closed.code == 1008
        await first.stream.aclose()
        await second.stream.aclose()
        third = await Client.open(worker, REALTIME)
        async with third.stream:
            await third.event()
            await third.send(BytesMessage(encode(INIT)))
            assert (await third.message())["type"] == "frame_batch_header"

    run_worker(test, model_path="wan")


def test_unknown_paths_are_refused_and_a_plain_get_is_404(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        for path in ("/nope", "/v1/actions/realtime", "/openpi/policy"):
            ws = await Client.open(worker, path)
            async with ws.stream:
                refused = await ws.event()
                assert isinstance(refused, RejectConnection)
                assert refused.status_code == 403
        assert (await client.get(REALTIME)).status_code == 404

    run_worker(test)


@pytest.mark.parametrize("path", ["/v1/actions/realtime", "/openpi/policy"])
def test_policies_answer_each_observation_and_end_with_1011(run_worker: Run, path: str) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        ws = await Client.open(worker, path)
        async with ws.stream:
            await ws.event()
            assert (await ws.message())["object"] == "action.metadata"
            for _ in range(2):
                await ws.send(BytesMessage(encode({"state": [1.0, 2.0]})))
                told = await ws.message()
                assert ("actions" in told) is (path == "/openpi/policy")
            assert "prev_total_ms" in told["server_timing"]
            await ws.send(BytesMessage(b"\xc1"))
            assert "error" in await ws.message()
            closed = await ws.event()
            assert closed.code == 1011

    run_worker(test, model_path="openpi/pi05")


def test_a_message_that_is_too_large_ends_the_session(
    run_worker: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert websockets.LARGEST_MESSAGE == 16 * 1024 * 1024
    monkeypatch.setattr(websockets, "LARGEST_MESSAGE", 1000)

    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        ws = await Client.open(worker, REALTIME)
        async with ws.stream:
            await ws.event()
            await ws.send(BytesMessage(bytes(1001)))
            assert (await ws.event()).code == 1009

    run_worker(test, model_path="wan")


def test_a_stop_ends_sessions_with_1012() -> None:
    async def main() -> None:
        config = WorkerConfig(model_path="wan", time_scale=0.01, warmup_seconds=0)
        async with trio.open_nursery() as nursery:
            worker = await nursery.start(serve, config)
            ws = await Client.open(worker, REALTIME)
            async with ws.stream:
                await ws.event()
                worker.stop()
                with fail_after(5):
                    assert (await ws.event()).code == 1012

    trio.run(main)


def test_a_client_that_leaves_frees_the_session(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        ws = await Client.open(worker, REALTIME)
        await ws.event()
        await ws.send(BytesMessage(encode({**INIT, "max_chunks": None})))
        await ws.message()
        assert not worker.state.realtime_over.is_set()
        await ws.send(CloseConnection(1000))
        while True:
            event = await ws.event()
            if isinstance(event, CloseConnection):
                break
        await ws.stream.aclose()
        await worker.state.realtime_over.wait()
        assert worker.log.requests[-1].status == 101

    run_worker(test, model_path="wan")
