"""Errors of the router's own endpoints, in the router's error shape."""

from __future__ import annotations

import logging
from typing import Any

from quart import Quart, g, request
from werkzeug.exceptions import HTTPException

from ..errors import RouterError

logger = logging.getLogger("router.web")

Answer = tuple[dict[str, Any], int, list[tuple[str, str]]]

_CODES = {404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}


def install(app: Quart) -> None:
    """Answer every error of the app as JSON with a code, and log it in one line."""
    app.register_error_handler(RouterError, _router_error)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(Exception, _unexpected)


async def _router_error(error: RouterError) -> Answer:
    _log(error)
    return error.body(g.request_id), error.status, list(error.headers)


async def _http_error(error: HTTPException) -> Answer:
    """What Quart itself refuses: an unknown method of a path, a body too large."""
    status = error.code or 500
    headers = [(name, value) for name, value in error.get_headers() if name == "Allow"]
    sentence = f"{request.method} {request.path}: {error.name}"
    return await _router_error(
        RouterError(
            sentence, status=status, code=_CODES.get(status, "bad_request"), headers=headers
        )
    )


async def _unexpected(error: Exception) -> Answer:
    logger.exception("%s %s failed", request.method, request.path, exc_info=error)
    return await _router_error(RouterError("The router failed to handle this request; see its log"))


def _log(error: RouterError) -> None:
    logger.warning(
        "%s %s: %s: %s",
        request.method,
        request.path,
        error.status,
        error.message,
        extra={"request_id": g.request_id, "code": error.code},
    )
