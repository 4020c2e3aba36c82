"""Every error that the router itself raises: whose fault it is, its HTTP status and its code.

The JSON body is `{"error": sentence, "code": snake_case, "request_id": ...}`. Errors of workers are
not here: the router passes them through untouched.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import Any, ClassVar

from attrs import frozen


class Fault(StrEnum):
    """The party that must act before the same request can succeed."""

    CLIENT = "client"
    WORKER = "worker"
    POOL = "pool"
    ROUTER = "router"


class RouterError(Exception):
    """An error that the router answers to a client.

    `status` is the HTTP status and `code` a stable snake_case word. `details` are further fields of
    the JSON body; `headers` are further response headers (`Retry-After`).
    """

    fault: ClassVar[Fault] = Fault.ROUTER
    default_status: ClassVar[int] = 500
    default_code: ClassVar[str] = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        status: int | None = None,
        details: Mapping[str, Any] | None = None,
        headers: Iterable[tuple[str, str]] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.status = status or self.default_status
        self.details = dict(details or {})
        self.headers = tuple(headers)

    @property
    def should_retry(self) -> bool:
        """Whether a client should send the same request again without being told to."""
        return bool(self.retry_safe)

    @property
    def retry_safe(self) -> bool | None:
        """Whether a client may send the same request again without any work being done twice. None
        if that is unknown, or if the answer would be the same."""
        said = self.details.get("retry_safe")
        if isinstance(said, bool):
            return said
        return True if self.fault is Fault.POOL else None

    def body(self, request_id: str | None) -> dict[str, Any]:
        """The JSON body of the answer."""
        return {
            "error": self.message,
            "code": self.code,
            "request_id": request_id,
            **self.details,
        }


class BadRequest(RouterError):
    """The client sent something that can never succeed."""

    fault = Fault.CLIENT
    default_status = 400
    default_code = "bad_request"


class NotFound(BadRequest):
    default_status = 404
    default_code = "not_found"


class Conflict(BadRequest):
    """The request contradicts the present state; nothing was changed."""

    default_status = 409
    default_code = "conflict"


class RequestTooLarge(BadRequest):
    default_status = 413
    default_code = "request_too_large"


class PoolUnavailable(RouterError):
    """The request is well formed, but no worker may serve it now."""

    fault = Fault.POOL
    default_status = 503
    default_code = "no_routable_worker"


class StateUnavailable(RouterError):
    """State that must outlive a restart cannot be written to the disk now."""

    fault = Fault.ROUTER
    default_status = 503
    default_code = "state_unavailable"


class WorkerFailed(RouterError):
    """A worker could not be reached, or broke off before its answer began."""

    fault = Fault.WORKER
    default_status = 502
    default_code = "worker_failed"


class WorkerTimeout(WorkerFailed):
    default_status = 504
    default_code = "worker_timeout"


@frozen
class Problem:
    """One mistake in the settings: its place, and what is wrong."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class SettingsError(Exception):
    """The settings cannot be used. Holds all mistakes, not only the first. Exit status 2."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = tuple(problems)


class StartError(Exception):
    """A command cannot go on: a port is in use, no router answers. The message is one sentence for
    the user."""

    status: ClassVar[int] = 1  # exit status of the process


@contextmanager
def unwrapped() -> Iterator[None]:
    """Raise a StartError bare, without the exception groups that nurseries wrap around it."""
    try:
        yield
    except BaseExceptionGroup as group:
        found: BaseException | None
        found, rest = group.split(StartError)
        while isinstance(found, BaseExceptionGroup):
            found = found.exceptions[0]
        if found is not None and rest is None:
            raise found from None
        raise


def describe(error: BaseException) -> str:
    """The most useful words of an exception from the operating system or a library."""
    words = str(error) or type(error).__name__
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"certificate verification failed: {cause.verify_message}"
        if isinstance(cause, OSError) and cause.strerror:
            words = _strerror(cause).lower()  # the innermost error wins: the system's own words
    return words


def _strerror(error: OSError) -> str:
    # trio puts the address before the words. The numbers of these two classes are not errno values.
    if error.errno and not isinstance(error, (socket.gaierror, ssl.SSLError)):
        return os.strerror(error.errno)
    return error.strerror or ""


def is_refusal(error: BaseException) -> bool:
    """Whether the error says that nothing listens at the address."""
    return any(isinstance(cause, ConnectionRefusedError) for cause in _causes(error))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and its causes, the innermost last; groups are flattened."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        if isinstance(seen, BaseExceptionGroup):
            for inner in seen.exceptions:
                yield from _causes(inner)
        seen = seen.__cause__ or seen.__context__
