"""Reading the small JSON bodies of the router's own endpoints."""

from __future__ import annotations

import json
from typing import Any

from quart import request

from ..errors import BadRequest
from ..pool.weights.numbers import MOST
from .uploads import upload


async def json_object() -> dict[str, Any]:
    """The request's body as a JSON object, empty if there is no body. Raises BadRequest."""
    data = await upload().whole()
    if not data.strip():
        return {}
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"Invalid JSON body: {error}", code="invalid_json") from None
    if not isinstance(content, dict):
        raise BadRequest("Request body must be a JSON object", code="invalid_json")
    return content


def flag(content: dict[str, Any], name: str) -> bool | None:
    """A boolean field, None if it is absent. Raises BadRequest."""
    value = content.get(name)
    if name in content and not isinstance(value, bool):
        raise BadRequest(f"{name} must be a boolean", code="invalid_field")
    return value


def concurrency(content: dict[str, Any]) -> int | None:
    """The field `max_concurrency`: a whole number from 1, None for auto or null. Raises
    BadRequest."""
    value = content.get("max_concurrency")
    if value == "auto":
        return None
    if value is not None and (type(value) is not int or not 1 <= value <= 10_000):
        raise BadRequest(
            "max_concurrency must be a whole number from 1 to 10000, or auto or null",
            code="invalid_field",
        )
    return value


def only(content: dict[str, Any], allowed: tuple[str, ...]) -> None:
    """Refuse unknown fields: a mistyped field must not seem to be obeyed."""
    unknown = sorted(set(content) - set(allowed))
    if unknown:
        raise BadRequest(
            f"Unsupported fields: {', '.join(unknown)}",
            code="unsupported_fields",
            details={"supported_fields": sorted(allowed)},
        )


def named_pool() -> str | None:
    """The pool that `?pool=` or `X-Pool` names. Raises BadRequest if they name two."""
    names = {*request.args.getlist("pool"), *request.headers.getlist("X-Pool")}
    if len(names) > 1:
        raise BadRequest("The request names two pools: name one, once", code="ambiguous_target")
    return next(iter(names), None)


def query_flag(name: str, *, absent: bool = False) -> bool:
    """A boolean of the query string. Raises BadRequest."""
    value = request.args.get(name)
    if value is None:
        return absent
    if value.lower() in ("false", "0", "no"):
        return False
    if value.lower() in ("", "true", "1", "yes"):
        return True
    raise BadRequest(f"?{name}= must be true or false, not {value!r}", code="invalid_field")


def version(content: dict[str, Any]) -> int | None:
    """The field `weight_version`: a whole number from 0, None if it is absent. Raises
    BadRequest."""
    value = content.get("weight_version")
    if value is not None and (type(value) is not int or not 0 <= value <= MOST):
        raise BadRequest(
            f"weight_version must be a whole number from 0 to {MOST}",
            code="invalid_field",
        )
    return value


def query_number(name: str, *, absent: int, least: int, most: int) -> int:
    """A whole number of the query string. Raises BadRequest."""
    value = request.args.get(name)
    if value is None:
        return absent
    if not (value.isascii() and value.isdigit() and least <= int(value[:9]) <= most):
        raise BadRequest(
            f"?{name}= must be a whole number from {least} to {most}", code="invalid_field"
        )
    return int(value)
