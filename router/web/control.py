"""Weights, LoRA, sleep and wake: calls that go to every eligible worker of a model."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from quart import Blueprint, g, request

from ..control.broadcast import Call
from ..control.refit import check_body
from ..errors import BadRequest, RequestTooLarge
from ..pool.targets import select
from ..pool.worker import Worker
from .parts import parts

blueprint = Blueprint("control", __name__)

Answer = tuple[dict[str, Any], int]

_CHANGES = (
    "/update_weights_from_disk",
    "/v1/set_lora",
    "/v1/merge_lora_weights",
    "/v1/unmerge_lora_weights",
)
# A body up to this size is held, so that it can be checked before a worker sees it.
_HELD = 1024 * 1024
# Headers of the client that workers get too.
_PASSED = ("content-type", "traceparent", "tracestate")


async def change_weights() -> Answer:
    """A change on every eligible worker of the chosen model."""
    body = await _held_body()
    check_body(request.path, _json(body))
    call = _call(body)
    return await _do(lambda: parts().weights.change(_chosen(), call))


async def change_weights_from_tensor() -> Answer:
    """The same for tensors, whose gigabytes are copied to all workers as they come."""
    request.max_content_length = None
    if request.content_length is not None and request.content_length <= _HELD:
        return await change_weights()
    # Read from the client only while this request lives: no errand.
    return _wire(await parts().weights.change(_chosen(), _call(_pieces)))


async def ask_weights() -> Answer:
    """A question to every healthy worker, and whether they agree."""
    return _wire(await parts().weights.ask(_chosen(), _call(await _held_body())))


async def sleep() -> Answer:
    """Every eligible worker gives its GPU memory back."""
    call = _call(await _held_body())
    return await _do(lambda: parts().memory.sleep(_chosen(), call))


async def wake() -> Answer:
    """Every sleeping worker takes its GPU memory again."""
    call = _call(await _held_body())
    return await _do(lambda: parts().memory.wake(_chosen(), call))


for _path in _CHANGES:
    blueprint.add_url_rule(_path, _path, change_weights, methods=["POST"])
_tensor = "/update_weights_from_tensor"
blueprint.add_url_rule(_tensor, _tensor, change_weights_from_tensor, methods=["POST"])
for _path in ("/get_weights_checksum", "/update_weights_from_tensor_checker"):
    blueprint.add_url_rule(_path, _path, ask_weights, methods=["POST"])
blueprint.add_url_rule("/v1/list_loras", "list_loras", ask_weights, methods=["GET"])
blueprint.add_url_rule("/release_memory_occupation", "sleep", sleep, methods=["POST"])
blueprint.add_url_rule("/resume_memory_occupation", "wake", wake, methods=["POST"])


def _chosen() -> list[Worker]:
    """The workers that the query names."""
    query = request.args
    return select(parts().registry, model=query.get("model"), workers=query.get("workers"))


def _call(body: bytes | Callable[[], AsyncIterator[bytes]]) -> Call:
    headers = [(name, request.headers[name]) for name in _PASSED if name in request.headers]
    headers.append(("x-request-id", g.request_id))
    if not isinstance(body, bytes) and request.content_length is not None:
        headers.append(("content-length", str(request.content_length)))
    limits = parts().limits
    return Call(
        request.path.rstrip("/"), headers, body, limits.refit, limits.idle, method=request.method
    )


async def _do(work: Callable[[], Awaitable[tuple[int, dict[str, Any]]]]) -> Answer:
    """Do it to its end, though the client may leave before."""
    return _wire(await parts().errands.do(work))


def _wire(answer: tuple[int, dict[str, Any]]) -> Answer:
    status, body = answer
    return body, status


async def _held_body() -> bytes:
    if request.content_length is not None and request.content_length > _HELD:
        raise RequestTooLarge(f"The body of {request.path} is larger than {_HELD} bytes")
    data = await request.get_data()
    assert isinstance(data, bytes)
    return data


async def _pieces() -> AsyncIterator[bytes]:
    async for piece in request.body:
        yield bytes(piece)


def _json(body: bytes) -> Any:
    try:
        return json.loads(body or b"{}")
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"Invalid JSON body: {error}", code="invalid_json") from None
