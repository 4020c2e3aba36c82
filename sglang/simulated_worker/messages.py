"""What goes over the wire: a response, the refusals of a worker, and what it says about time."""

from __future__ import annotations

import email.utils
import http
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from attrs import field, frozen

Headers = list[tuple[bytes, bytes]]
Pieces = Callable[[], Iterable[bytes]]

PIECE = 256 * 1024
"""The most bytes that are handled at a time."""

_PHRASES = {416: "Requested Range Not Satisfiable", 422: "Unprocessable Entity"}


def phrase(status: int) -> bytes:
    """The reason phrase that the real worker sends."""
    return _PHRASES.get(status, http.HTTPStatus(status).phrase).encode()


def wall_seconds() -> int:
    """Seconds since 1970, for the stamps that a worker puts into its answers."""
    return int(datetime.now(UTC).timestamp())


def http_date(seconds: float | None = None) -> bytes:
    return email.utils.formatdate(seconds, usegmt=True).encode()


@frozen
class Response:
    """One answer. `body` is sent whole, or `pieces` as they come (`length` bytes in all)."""

    status: int = 200
    headers: Sequence[tuple[bytes, bytes]] = field(factory=list)
    body: bytes = b""
    pieces: Pieces | None = None
    cors: bool = True
    """False for answers made outside of the CORS layer of the real worker: no `vary: Origin`."""
    last: bool = False
    """True: the connection is closed after it, which no header announces."""


def response(
    body: bytes, media_type: str | None, status: int = 200, *extra: tuple[bytes, bytes]
) -> Response:
    """Headers in the order of the real worker: extra ones, length, type."""
    headers: Headers = [*extra, (b"content-length", str(len(body)).encode())]
    if media_type is not None:
        headers.append((b"content-type", media_type.encode()))
    return Response(status, headers, body)


def slices(body: bytes) -> Iterator[bytes]:
    """The body in pieces."""
    for at in range(0, len(body), PIECE):
        yield body[at : at + PIECE]


def to_json(value: Any) -> bytes:
    """JSON without spaces and without escapes for what UTF-8 can say."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(
        "utf-8", "surrogatepass"
    )


class NotJson(ValueError):
    """Bytes that are no JSON; `place` is where they stop being it."""

    def __init__(self, message: str, place: int = 0) -> None:
        super().__init__(message)
        self.place = place


def from_json(data: bytes | str) -> Any:
    """Raises `NotJson` for whatever the parser does not take, nesting without end included."""
    try:
        return json.loads(data)
    except json.JSONDecodeError as error:
        raise NotJson(error.msg, error.pos) from None
    except (ValueError, RecursionError) as error:
        raise NotJson(str(error)) from None


def json_response(value: Any, status: int = 200, *extra: tuple[bytes, bytes]) -> Response:
    return response(to_json(value), "application/json", status, *extra)


def text_response(text: str, status: int) -> Response:
    return response(text.encode(), "text/plain; charset=utf-8", status)


class Refusal(Exception):
    """Raised by a handler instead of returning; carries the answer. The seven error shapes:

    `detail` (a string), `unprocessable` (a list), `unknown_model` (an object under `error`),
    `unavailable` (a string under `error`), `unsuccessful` (`success: false`), `server_error`
    (plain text), and an empty 503, which only the health endpoint makes.
    """

    def __init__(self, answer: Response) -> None:
        super().__init__(answer.status)
        self.answer = answer


def detail(status: int, message: str) -> Refusal:
    return Refusal(json_response({"detail": message}, status))


def unprocessable(errors: list[dict[str, Any]]) -> Refusal:
    return Refusal(json_response({"detail": errors}, 422))


def unknown_model(model: str) -> Refusal:
    error = {
        "message": f"The model '{model}' does not exist",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }
    return Refusal(json_response({"error": error}, 404))


def unavailable(reason: str) -> Refusal:
    return Refusal(json_response({"error": reason}, 503))


def unsuccessful(status: int, message: str) -> Refusal:
    return Refusal(json_response({"success": False, "message": message}, status))


def server_error() -> Refusal:
    """What an exception that nobody handled looks like from outside."""
    answer = text_response("Internal Server Error", 500)
    return Refusal(Response(answer.status, answer.headers, answer.body, cors=False, last=True))
