"""Actions of policies, for models of that kind only: one call, or a session of many."""

from __future__ import annotations

import math
import random
import struct
import uuid
from typing import Any

from attrs import frozen

from .cost import Shape
from .exchange import Exchange
from .messages import (
    NotJson,
    Response,
    detail,
    from_json,
    json_response,
    response,
    server_error,
    wall_seconds,
)
from .msgpack import MsgpackError, decode, encode
from .multipart import read_form
from .record import now
from .routing import Route
from .scheduler import SchedulerError
from .state import State
from .websockets import WebSocket

REALTIME_PATH = "/v1/actions/realtime"
OPENPI_PATH = "/openpi/policy"
_HORIZON, _DIMENSIONS = 16, 7
_STEPS = 10


@frozen
class ActionsApi:
    """Answers JSON, or msgpack where the request is msgpack or asks for it."""

    state: State

    def routes(self) -> list[Route]:
        if not self.state.config.makes("ACTION"):
            return []
        return [
            Route("POST", "/v1/actions/generations", self.generate),
            Route("GET", "/v1/actions/metadata", self.metadata),
        ]

    async def generate(self, exchange: Exchange) -> Response:
        kind = exchange.header(b"content-type").lower()
        packed = "msgpack" in kind or "msgpack" in exchange.header(b"accept").lower()
        if "multipart/form-data" in kind:
            payload: Any = {"parameters": dict((await read_form(exchange)).fields)}
        elif "msgpack" in kind:
            try:
                payload = decode(await exchange.body())
            except MsgpackError:
                raise server_error() from None
        else:
            try:
                payload = from_json(await exchange.body())
            except NotJson as error:
                raise detail(400, str(error)) from None
        if not isinstance(payload, dict):
            raise server_error()
        raw = _wants_raw(payload)
        try:
            rows = await self._infer(payload, exchange.entry.request_id)
        except SchedulerError:
            raise server_error() from None
        told = self._told(rows, payload, packed=packed)
        if raw:
            told = {"actions": told["data"][0]["action"]["values"]}
        if packed:
            return response(encode(told), "application/msgpack")
        return json_response(told)

    async def metadata(self, _: Exchange) -> Response:
        return json_response(self._metadata())

    async def session(self, socket: WebSocket, *, openpi: bool) -> None:
        """Each binary message is an observation; an error ends the session with 1011."""
        await socket.accept()
        await socket.send(encode(self._metadata()))
        before: float | None = None
        while True:
            message = await socket.receive()
            began = now()
            try:
                payload = decode(message) if isinstance(message, bytes) else None
                if not isinstance(payload, dict):
                    raise MsgpackError("expected a map")
                rows = await self._infer(payload, socket.exchange.entry.request_id)
            except (MsgpackError, SchedulerError) as error:
                await socket.send(encode({"error": f"{type(error).__name__}: {error}"}))
                await socket.close(1011, "Internal server error")
                return
            told = self._told(rows, payload, packed=True)
            if openpi:
                told = {"actions": told["data"][0]["action"]["values"]}
            told["server_timing"] = {"infer_ms": (now() - began) * 1000}
            if before is not None:
                told["server_timing"]["prev_total_ms"] = before * 1000
            await socket.send(encode(told))
            before = now() - began

    async def _infer(self, payload: dict[str, Any], request_id: str) -> list[list[float]]:
        work = self.state.scheduler.submit_generation(
            "action",
            str(payload.get("request_id") or uuid.uuid4()),
            Shape("ACTION", 224, 224, _STEPS),
            1,
            request_id=request_id,
        )
        await work.finished.wait()
        if work.error is not None:
            raise SchedulerError(str(work.error))
        dice = random.Random(f"{work.entry.weights} {payload!r}")
        turns = [dice.uniform(0.1, 1) for _ in range(_DIMENSIONS)]
        return [[round(math.sin(t * turn), 6) for turn in turns] for t in range(_HORIZON)]

    def _told(
        self, rows: list[list[float]], payload: dict[str, Any], *, packed: bool
    ) -> dict[str, Any]:
        return {
            "id": str(payload.get("request_id") or f"act_{uuid.uuid4().hex}"),
            "object": "action.generation",
            "created": wall_seconds(),
            "model": self.state.config.name,
            "data": [
                {
                    "index": 0,
                    "input_index": 0,
                    "candidate_index": 0,
                    "action": {
                        "type": "continuous",
                        "dtype": "float32",
                        "shape": [_HORIZON, _DIMENSIONS],
                        "values": _packed(rows) if packed else rows,
                    },
                }
            ],
            "usage": {
                "batch_size": 1,
                "action_horizon": _HORIZON,
                "action_dim": _DIMENSIONS,
                "denoise_steps": _STEPS,
                "prefix_cache_hit": False,
            },
        }

    def _metadata(self) -> dict[str, Any]:
        return {
            "object": "action.metadata",
            "model": self.state.config.name,
            "model_path": self.state.config.model_path,
            "policy_family": "simulated",
            "output": {
                "action_type": "continuous",
                "action_horizon": _HORIZON,
                "action_dim": _DIMENSIONS,
                "dtype": "float32",
            },
            "defaults": {"num_inference_steps": _STEPS},
        }


def _wants_raw(payload: dict[str, Any]) -> bool:
    runtime = payload.get("runtime")
    wanted = str((runtime if isinstance(runtime, dict) else {}).get("response_format", "envelope"))
    if wanted.lower() not in ("envelope", "raw"):
        raise detail(400, "runtime.response_format must be 'envelope' or 'raw'")
    return wanted.lower() == "raw"


def _packed(rows: list[list[float]]) -> dict[bytes, Any]:
    """The rows as the numpy array of msgpack-numpy."""
    flat = [value for row in rows for value in row]
    return {
        b"__ndarray__": True,
        b"data": struct.pack(f"<{len(flat)}f", *flat),
        b"dtype": "<f4",
        b"shape": [len(rows), len(rows[0])],
    }
