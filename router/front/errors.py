"""How an error is told: one shape of the answer, one line in the log, one name of the request."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from email.utils import formatdate

from ..errors import RouterError
from ..text import header, to_json, words

Headers = list[tuple[bytes, bytes]]

_LONGEST_SENTENCE = 1000  # in the log
# What clients may call a request; anything else is replaced, so that logs stay readable.
_PRESENTABLE = re.compile(rb"[!-~]{1,128}\Z")


def request_id(headers: Sequence[tuple[bytes, bytes]]) -> str:
    """The client's X-Request-Id if it is presentable, else a new one."""
    for name, given in headers:
        if name.lower() == b"x-request-id":
            return given.decode() if _PRESENTABLE.match(given) else new_request_id()
    return new_request_id()


def new_request_id() -> str:
    return os.urandom(16).hex()


def error_answer(error: RouterError, request_id: str) -> tuple[Headers, bytes]:
    """Headers and body of the answer that tells a client of an error."""
    body = to_json(error.body(request_id)).encode()
    headers: Headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"x-request-id", request_id.encode()),
        *((name.lower().encode(), header(content)) for name, content in error.headers),
        # OpenAI's SDKs obey it. Without it they repeat each 408, 409, 429 and 5xx.
        (b"x-should-retry", b"true" if error.retry_safe else b"false"),
    ]
    return headers, body


def internal_error() -> RouterError:
    """What a client is told of an unexpected error, which the log has."""
    return RouterError("The router failed to handle this request; see its log")


def log_error(logger: logging.Logger, what: str, error: RouterError, request_id: str) -> None:
    """The one line that an error of the router leaves; `what` was asked (`GET /path`)."""
    log_end(logger, what, error.code, f"{error.status}: {error.message}", request_id)


def log_end(logger: logging.Logger, what: str, code: str, sentence: str, request_id: str) -> None:
    """The one line that an exchange leaves that ended before its time, of bounded length."""
    logger.warning(
        "%s: %s",
        words(what),
        words(sentence, _LONGEST_SENTENCE),
        extra={"request_id": request_id, "code": code},
    )


def http_date() -> bytes:
    """Now, as the Date header has it (RFC 9110 section 5.6.7)."""
    return formatdate(usegmt=True).encode()
