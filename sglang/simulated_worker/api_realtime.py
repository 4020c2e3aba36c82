"""`/v1/realtime_video/generate`: one session per worker that streams chunks of frames."""

from __future__ import annotations

import contextlib
import uuid
from typing import Any

import trio
from attrs import define, field, frozen

from .cost import Shape
from .fields import Field, check
from .generation import Plan, size_of
from .messages import Refusal
from .msgpack import MsgpackError, decode, encode
from .pictures import raw_frame
from .scheduler import Work
from .state import State
from .websockets import WebSocket, WebSocketClosed

PATH = "/v1/realtime_video/generate"
_FRAMES_PER_CHUNK = 3
_STEPS = 4
_SLOT_SECONDS = 1.0
_INIT = (
    Field("type", "str", required=True, nullable=False),
    Field("prompt", "str", required=True, nullable=False),
    Field("max_chunks", "int"),
    Field("seed", "int", 42),
    Field("size", "str", "832x480"),
    Field("width", "int"),
    Field("height", "int"),
    Field("num_inference_steps", "int"),
)


@define(eq=False)
class _Session:
    id: str
    values: dict[str, Any]
    chunks: int = 0
    event_id: int | None = None
    prompt: str = ""
    lock: trio.Lock = field(factory=trio.Lock)

    @property
    def complete(self) -> bool:
        most = self.values["max_chunks"]
        return most is not None and self.chunks >= most


@frozen
class RealtimeApi:
    """A bad `init` gets an error and leaves the socket open; a second session ends with 1008."""

    state: State

    async def session(self, socket: WebSocket) -> None:
        await socket.accept()
        await self.state.until_warm()
        session = _Session(uuid.uuid4().hex, await self._init(socket))
        session.prompt = session.values["prompt"]
        if not await self._slot():
            await socket.send(_error("another realtime session is already active"))
            await socket.close(1008)
            return
        over = self.state.realtime_over = trio.Event()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._listen, socket, session, nursery.cancel_scope)
                with contextlib.suppress(WebSocketClosed):
                    await self._generate(socket, session)
                nursery.cancel_scope.cancel()
            if session.complete:
                await socket.close(1000, "generation complete")
        finally:
            over.set()

    async def _init(self, socket: WebSocket) -> dict[str, Any]:
        """Waits for a good `init`."""
        while True:
            values = self._values(await socket.receive())
            if values is not None:
                return values
            await socket.send(_error("invalid generate request"))

    def _values(self, message: bytes | str) -> dict[str, Any] | None:
        body = _map(message)
        if body is None or body.get("type") != "init" or not self.state.config.makes("VIDEO"):
            return None
        values, errors = check(body, _INIT)
        if errors or (values["max_chunks"] is not None and values["max_chunks"] < 1):
            return None
        try:
            values["width"], values["height"] = size_of(values, "VIDEO")
        except Refusal:
            return None
        return values

    async def _slot(self) -> bool:
        """True if no other session is active, or the other one ends within a second."""
        with trio.move_on_after(_SLOT_SECONDS):
            await self.state.realtime_over.wait()
        return self.state.realtime_over.is_set()

    async def _generate(self, socket: WebSocket, session: _Session) -> None:
        while not session.complete:
            made, work = self._submit(session)
            await work.finished.wait()
            if work.error is not None:
                await socket.send(_error(f"error during generate loop: {work.error}"))
                return
            recipe = made.recipes(work)[0]
            frame = await trio.to_thread.run_sync(raw_frame, recipe)
            async with session.lock:
                await self._send_chunk(socket, session, made, frame)
            session.chunks += 1

    def _submit(self, session: _Session) -> tuple[Plan, Work]:
        values = session.values
        steps = values["num_inference_steps"] or _STEPS
        shape = Shape("VIDEO", values["width"], values["height"], steps, _FRAMES_PER_CHUNK)
        id = f"{session.id}_{uuid.uuid4().hex}"
        seed = (values["seed"] or 0) + session.chunks
        made = Plan(id, shape, 1, session.prompt, (seed,))
        work = self.state.scheduler.submit_generation(
            "realtime", id, shape, 1, request_id="", session=session.id, chunk=session.chunks
        )
        return made, work

    async def _send_chunk(
        self, socket: WebSocket, session: _Session, made: Plan, frame: bytes
    ) -> None:
        payload = frame * _FRAMES_PER_CHUNK
        header = {
            "type": "frame_batch_header",
            "request_id": made.id,
            "chunk_index": session.chunks,
            "content_type": "application/x-raw-rgb",
            "num_frames": _FRAMES_PER_CHUNK,
            "total_size": len(payload),
            "frame_batch_index": 0,
            "num_frame_batches": 1,
            "is_final_frame_batch": True,
            "format": "rgb24",
            "width": made.shape.width,
            "height": made.shape.height,
            "channels": 3,
            "bytes_per_frame": len(frame),
            "raw_size": len(payload),
            "encoding": "raw",
        }
        if session.event_id is not None:
            header["event_id"] = session.event_id
        await socket.send(encode(header))
        await socket.send(payload)
        await socket.send(
            encode(
                {
                    "type": "chunk_stats",
                    "session_id": session.id,
                    "request_id": made.id,
                    "chunk_index": session.chunks,
                    "event_id": session.event_id,
                    "num_batches": 1,
                    "num_frames": _FRAMES_PER_CHUNK,
                    "raw_bytes": len(payload),
                    "content_type": "application/x-raw-rgb",
                }
            )
        )

    async def _listen(self, socket: WebSocket, session: _Session, scope: trio.CancelScope) -> None:
        """Takes events until the client is gone."""
        try:
            while True:
                event = _map(await socket.receive())
                good = event is not None and event.get("type") == "event"
                if event is None or not good or not isinstance(event.get("kind"), str):
                    async with session.lock:
                        await socket.send(_error("invalid event"))
                    continue
                session.event_id = event.get("event_id")
                if event["kind"] == "prompt" and isinstance(event.get("payload"), str):
                    session.prompt = event["payload"]
        except WebSocketClosed:
            scope.cancel()


def _map(message: bytes | str) -> dict[str, Any] | None:
    if isinstance(message, str):
        return None
    try:
        value = decode(message)
    except MsgpackError:
        return None
    return value if isinstance(value, dict) else None


def _error(text: str) -> bytes:
    return encode({"type": "error", "content": text})
