"""Weights, LoRA, sleep and wake: calls that go to every eligible worker of a model."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterable, Awaitable, Callable
from functools import partial
from typing import Any

from quart import Blueprint, g, request

from ..control.calls import Outcome, Pipe, filling
from ..control.client import Call
from ..control.fenced_change import Rolling
from ..control.order import SIGNALS, Order
from ..control.unwrap import unwrap
from ..errors import BadRequest
from ..pool.match import select
from ..pool.weights.numbers import check_length
from ..pool.weights.recipe import BOUND, COLLECTIVES, DISK, GROUPS, PUSHES, SET_LORA, TENSOR
from ..pool.worker import Worker
from . import body
from .body import flag, named_pool, query_flag
from .parts import parts
from .uploads import HELD, upload

blueprint = Blueprint("control", __name__)

Answer = tuple[dict[str, Any], int]

_CHANGES = (
    "/update_weights_from_disk",
    "/v1/set_lora",
    "/v1/merge_lora_weights",
    "/v1/unmerge_lora_weights",
    *sorted(COLLECTIVES),
)
# Headers of the client that workers also get.
_PASSED = ("content-type", "traceparent", "tracestate")

# The fields that a change requires; without them it is refused before any worker is touched.
_REQUIRED = {
    DISK: "model_path",
    TENSOR: "serialized_named_tensors",
    SET_LORA: "lora_nickname",
}

# Fields that hold text, a list of texts, or either; null counts as absent.
_TEXT, _TEXTS = "a text", "a list of texts"
_TYPES: dict[str, dict[str, tuple[str, ...]]] = {
    DISK: {"model_path": (_TEXT,), "target_modules": (_TEXTS,)},
    SET_LORA: {name: (_TEXT, _TEXTS) for name in ("lora_nickname", "lora_path", "target")},
}


_ROLLING = re.compile(r"([1-9][0-9]{0,5})(%?)")


async def change_weights() -> Answer:
    """Apply a change to every eligible worker of the chosen model."""
    return await _change(await upload().whole())


async def change_weights_from_tensor() -> Answer:
    """Apply a change of tensors, whose gigabytes are copied to all workers as they arrive."""
    parts().weights.one_model(_chosen())  # refuse before the client has sent everything
    source = upload()
    held = await source.begin(HELD)
    if source.over:
        return await _change(held)
    _check_beginning(held)
    rest = Pipe(held)
    async with filling(rest, source):
        return await _make(_call(rest), None)


async def ask_weights() -> Answer:
    """Ask every healthy worker a question, and say whether the answers agree."""
    call = _call(await upload().whole())
    return _wire(await parts().weights.ask(_chosen(mixed=True), call))


async def tell() -> Answer:
    """Tell every healthy worker the same at the same moment."""
    call = _call(await upload().whole())
    return await _send(call, None, parts().weights.tell, mixed=call.path in SIGNALS)


async def sleep() -> Answer:
    """Make every eligible worker give back its GPU memory."""
    _no_transaction()
    call = _call(await upload().whole())
    return _wire(await parts().memory.sleep(_chosen(mixed=True), call))


async def wake() -> Answer:
    """Make every sleeping worker take its GPU memory again."""
    _no_transaction()
    call = _call(await upload().whole())
    return _wire(await parts().memory.wake(_chosen(mixed=True), call))


for _name in _CHANGES:
    blueprint.add_url_rule(_name, _name, change_weights, methods=["POST"])
_tensor = "/update_weights_from_tensor"
blueprint.add_url_rule(_tensor, _tensor, change_weights_from_tensor, methods=["POST"])
for _name in (*GROUPS, *SIGNALS):
    methods = ["GET", "POST"] if _name == "/flush_cache" else ["POST"]
    blueprint.add_url_rule(_name, _name, tell, methods=methods)
for _name in ("/get_weights_checksum", "/update_weights_from_tensor_checker"):
    blueprint.add_url_rule(_name, _name, ask_weights, methods=["POST"])
blueprint.add_url_rule("/v1/list_loras", "list_loras", ask_weights, methods=["GET"])
blueprint.add_url_rule("/release_memory_occupation", "sleep", sleep, methods=["POST"])
blueprint.add_url_rule("/resume_memory_occupation", "wake", wake, methods=["POST"])


def _chosen(*, mixed: bool = False) -> list[Worker]:
    """The workers that the query names, perhaps by their transaction."""
    model, workers, txn = (request.args.get(name) for name in ("model", "workers", "txn"))
    if txn is None:
        pool = named_pool()
        return select(parts().registry, model=model, workers=workers, pool=pool, mixed=mixed)
    if model is not None or named_pool() is not None:
        raise BadRequest(
            "?txn= names the model: ?model= and ?pool= cannot be given with it",
            code="invalid_field",
        )
    return parts().transactions.chosen(txn, workers)


def _no_transaction() -> None:
    """Refuse what would wait for the end of its own transaction. Raises BadRequest."""
    if "txn" in request.args:
        raise BadRequest(
            "Sleep and wake are no part of a transaction, and wait for its end: leave ?txn= out",
            code="invalid_field",
        )


def _path() -> str:
    return request.path.rstrip("/")


async def _change(data: bytes) -> Answer:
    content = _json(data)
    _check_body(_path(), content)
    return await _make(_call(data), content)


async def _make(call: Call, content: dict[str, Any] | None) -> Answer:
    """Make a change, alone or as part of the transaction named by `?txn=`."""
    if body.query_flag("unwrap"):
        for other in ("txn", "rolling"):
            if other in request.args:
                raise BadRequest(
                    f"?unwrap= restarts workers: it cannot be given with ?{other}=",
                    code="invalid_field",
                )
        await unwrap(parts().weights, _chosen(), parts().limits.refit)
    return await _send(call, content, parts().weights.change)


async def _send(
    call: Call,
    content: dict[str, Any] | None,
    alone: Callable[[Order], Awaitable[Outcome]],
    *,
    mixed: bool = False,
) -> Answer:
    model, workers, txn = (request.args.get(name) for name in ("model", "workers", "txn"))
    pool = named_pool()
    registry = parts().registry
    choose = partial(select, registry, model=model, workers=workers, pool=pool, mixed=mixed)
    order = Order(call, choose, (model, workers, pool), content, _full(content), _rolling(call))
    if txn is None:
        return _wire(await alone(order))
    _chosen()  # refuse ?model=, ?pool=, and workers that are not of the transaction
    return _wire(await parts().transactions.call(txn, order))


def _full(content: dict[str, Any] | None) -> bool | None:
    """Whether the request says that its tensors replace all weights; None if it says nothing.
    Raises BadRequest."""
    if _path() not in PUSHES:
        if "full" in request.args:
            raise BadRequest("?full= is for pushes of tensors only", code="invalid_field")
        return None
    said = flag(content or {}, "full")
    return query_flag("full") if "full" in request.args else said


def _rolling(call: Call) -> Rolling | None:
    """How many workers the change may fence at once; None: all. Raises BadRequest."""
    said = request.args.get("rolling")
    if said is None:
        return None
    why = None
    if "txn" in request.args:
        why = "a transaction holds all of its workers until its end"
    elif call.path in (*BOUND, *SIGNALS):
        why = f"{call.path} goes to all workers at the same moment"
    elif not isinstance(call.body, bytes):
        why = f"a body above {HELD >> 20} MiB is copied to all workers at once"
    if why is not None:
        raise BadRequest(f"?rolling= cannot be given here: {why}", code="invalid_field")
    match = _ROLLING.fullmatch(said)
    if match is None or (match[2] and int(match[1]) > 100):
        raise BadRequest(
            "?rolling= must be a whole number of workers from 1, or a share from 1% to 100%, not "
            f"{said!r:.50}",
            code="invalid_field",
        )
    return Rolling(int(match[1]), bool(match[2]))


def _call(data: bytes | AsyncIterable[bytes]) -> Call:
    headers = [(name, request.headers[name]) for name in _PASSED if name in request.headers]
    headers.append(("x-request-id", g.record.request_id))
    if not isinstance(data, bytes) and request.content_length is not None:
        headers.append(("content-length", str(request.content_length)))
    limits = parts().limits
    return Call(_path(), limits.refit, data, headers, limits.idle, request.method)


def _wire(answer: tuple[int, dict[str, Any]]) -> Answer:
    status, body = answer
    return body, status


def _json(body: bytes) -> Any:
    try:
        return json.loads(body or b"{}")
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"Invalid JSON body: {error}", code="invalid_json") from None


def _check_body(path: str, content: Any) -> None:
    """Refuse a change that no worker can apply. Raises BadRequest."""
    if not isinstance(content, dict):
        raise BadRequest("Request body must be a JSON object", code="invalid_json")
    needed = _REQUIRED.get(path)
    if needed is not None and not content.get(needed):
        raise BadRequest(f"The field {needed!r} is required", code="missing_field")
    for name in ("weight_version", "label"):
        check_length(name, content.get(name))
    for name, types in _TYPES.get(path, {}).items():
        if not any(_is(content.get(name), each) for each in types):
            raise BadRequest(f"{name} must be {' or '.join(types)}", code="invalid_field")


def _is(value: Any, what: str) -> bool:
    if what == _TEXTS:
        return value is None or (
            isinstance(value, list) and all(_is(item, _TEXT) for item in value)
        )
    return value is None or isinstance(value, str)


def _check_beginning(held: bytes) -> None:
    """Refuse a body whose beginning cannot be a JSON object's. Raises BadRequest."""
    if not held.lstrip().startswith(b"{") or b"\0" in held[:4]:  # UTF-16
        raise BadRequest("Request body must be a JSON object", code="invalid_json")
