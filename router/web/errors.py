"""Errors of the router's own endpoints, in the router's error shape."""

from __future__ import annotations

import logging

from quart import Quart, Response, g, request
from werkzeug.exceptions import HTTPException

from .. import boundary
from ..errors import RouterError
from ..front.errors import error_answer, internal_error, log_error

logger = logging.getLogger("router.web")

_CODES = {404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}


def install(app: Quart) -> None:
    """Answer every error of the app as JSON with a code, and log it in one line."""
    app.register_error_handler(RouterError, _router_error)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(Exception, _unexpected)


async def _router_error(error: RouterError) -> Response:
    log_error(logger, g.record, error)
    return _answer(error)


def _answer(error: RouterError) -> Response:
    headers, body = error_answer(g.record, error)
    fields = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
    return Response(body, error.status, dict(fields))


async def _http_error(error: HTTPException) -> Response:
    """Errors that Quart raises: an unknown method of a path, a body too large."""
    status = error.code or 500
    headers = [(name, value) for name, value in error.get_headers() if name == "Allow"]
    sentence = f"{request.method} {request.path}: {error.name}"
    return await _router_error(
        RouterError(
            sentence, status=status, code=_CODES.get(status, "bad_request"), headers=headers
        )
    )


async def _unexpected(error: Exception) -> Response:
    if boundary.is_of_core(error):
        raise error
    boundary.note("client", g.record.what, error, request_id=g.record.request_id)
    return _answer(internal_error())
