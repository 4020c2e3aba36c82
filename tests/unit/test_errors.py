"""What errors say: to clients, and of what the system says."""

from __future__ import annotations

import errno
import socket
import ssl
from itertools import pairwise

import pytest

from router import errors
from router.errors import (
    Conflict,
    PoolUnavailable,
    RouterError,
    StateUnavailable,
    WorkerFailed,
    describe,
    is_refusal,
)
from router.front.errors import error_answer
from router.front.record import ExchangeRecord


def raised(*chain: BaseException) -> BaseException:
    """The last of the chain, each raised from the one before."""
    for cause, error in pairwise(chain):
        error.__cause__ = cause
    return chain[-1]


REFUSED = ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
UNREACHABLE = OSError(errno.EHOSTUNREACH, "No route to host")
# As trio words it.
WORDY = OSError(errno.ECONNREFUSED, "Error connecting to ('127.0.0.1', 1): Connection refused")


@pytest.mark.parametrize(
    ("error", "words", "refusal"),
    [
        (REFUSED, "connection refused", True),
        (raised(REFUSED, OSError("all attempts to connect failed")), "connection refused", True),
        (WORDY, "connection refused", True),
        (ssl.SSLError(1, "[SSL] wrong version number"), "[ssl] wrong version number", False),
        (ValueError("bad"), "bad", False),
        (ValueError(), "ValueError", False),
        (raised(UNREACHABLE, RuntimeError()), "no route to host", False),
        (socket.gaierror(-2, "Name or service not known"), "name or service not known", False),
        (
            raised(
                ExceptionGroup("", [UNREACHABLE, raised(REFUSED, OSError("wrapped"))]), OSError("x")
            ),
            "connection refused",
            True,
        ),
        (OSError("no number"), "no number", False),
    ],
)
def test_the_systems_own_words_win(error: BaseException, words: str, refusal: bool) -> None:
    assert describe(error) == words
    assert is_refusal(error) is refusal


@pytest.mark.parametrize(
    ("error", "header"),
    [
        (WorkerFailed("x", details={"retry_safe": False}), b"false"),
        (WorkerFailed("x", details={"retry_safe": True}), b"true"),
        (WorkerFailed("x"), b"false"),
        (PoolUnavailable("x", code="queue_full"), b"true"),
        (StateUnavailable("x"), b"false"),
        (StateUnavailable("x", details={"retry_safe": False}), b"false"),
        (Conflict("x"), b"false"),
        (RouterError("x"), b"false"),
    ],
)
def test_clients_are_told_whether_to_retry(error: RouterError, header: bytes) -> None:
    headers, _ = error_answer(ExchangeRecord("r", "GET", "/", arrived=0), error)
    assert dict(headers).get(b"x-should-retry") == header


def test_a_certificate_is_named() -> None:
    error = ssl.SSLCertVerificationError(1, "long and winding")
    error.verify_message = "self-signed certificate"
    assert describe(raised(error, OSError("x"))) == (
        "certificate verification failed: self-signed certificate"
    )


def test_an_error_that_is_in_the_way_counts_as_cause() -> None:
    error = RuntimeError("while that was handled")
    error.__context__ = REFUSED
    assert is_refusal(error)


def test_the_wire_shape() -> None:
    error = PoolUnavailable("Sorry", code="no_workers", details={"retry": 1})
    assert error.body("r1") == {
        "error": "Sorry",
        "code": "no_workers",
        "request_id": "r1",
        "retry": 1,
    }
    assert (error.status, error.fault, error.headers) == (503, errors.Fault.POOL, ())
    assert Conflict("no").status == 409


def test_every_kind_of_error_has_a_status_and_a_code() -> None:
    kinds = [RouterError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    assert len(kinds) > 8
    for kind in kinds:
        assert 400 <= kind.default_status <= 508
        assert kind.default_code.replace("_", "").isalnum()
        assert kind.default_code == kind.default_code.lower()
