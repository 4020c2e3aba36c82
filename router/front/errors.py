"""How errors are reported: one shape of answer, one log line, one request id."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from email.utils import formatdate

from ..errors import RouterError
from ..text import header, masked, to_json, words
from .record import ExchangeRecord

Headers = list[tuple[bytes, bytes]]

_LONGEST_SENTENCE = 1000  # in the log
# The request ids that clients may choose; others are replaced, so that logs stay readable.
_PRESENTABLE = re.compile(rb"[!-~]{1,128}\Z")


def request_id(headers: Sequence[tuple[bytes, bytes]]) -> str:
    """The client's X-Request-Id if it is presentable, else a new one."""
    for name, given in headers:
        if name.lower() == b"x-request-id":
            return given.decode() if _PRESENTABLE.match(given) else new_request_id()
    return new_request_id()


def new_request_id() -> str:
    return os.urandom(16).hex()


def error_answer(record: ExchangeRecord, error: RouterError) -> tuple[Headers, bytes]:
    """Headers and body of the answer that tells the client of an error."""
    record.code = error.code
    body = (to_json(error.body(record.request_id)) + "\n").encode()
    headers: Headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"x-request-id", record.request_id.encode()),
        *((name.lower().encode(), header(content)) for name, content in error.headers),
        # OpenAI's SDKs obey this header. Without it they repeat each 408, 409, 429 and 5xx.
        (b"x-should-retry", b"true" if error.should_retry else b"false"),
    ]
    return headers, body


def internal_error() -> RouterError:
    """The answer to an unexpected error; the log has the details."""
    return RouterError("The router failed to handle this request; see its log")


def log_error(logger: logging.Logger, record: ExchangeRecord, error: RouterError) -> None:
    """Log an error of the router in one line."""
    log_end(logger, record, error.code, f"{error.status}: {error.message}")


def log_end(logger: logging.Logger, record: ExchangeRecord, code: str, sentence: str) -> None:
    """Log in one line, of bounded length, that an exchange ended early."""
    record.code = code
    logger.warning(
        "%s: %s",
        words(record.what),
        words(masked(sentence), _LONGEST_SENTENCE),
        extra={"request_id": record.request_id, "code": code, "worker": record.worker},
    )


def http_date() -> bytes:
    """The current time as a Date header (RFC 9110 section 5.6.7)."""
    return formatdate(usegmt=True).encode()
