"""Header lists in transit: keeps order and duplicates, drops hop-by-hop fields."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from .. import wall
from ..pool.ids import display_id
from ..text import moment
from . import versions

Headers = list[tuple[bytes, bytes]]

# RFC 9110 section 7.6.1, and older fields that intermediaries still meet.
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
# A Connection header must not make us drop these: that would change the meaning of the request (RFC
# 9110 section 7.6.1 forbids senders to name them).
_END_TO_END = frozenset(
    {
        b"host",
        b"content-length",
        b"content-type",
        b"content-encoding",
        b"authorization",
        b"cookie",
        b"x-router-hops",
    }
)
_REQUEST_ONLY = frozenset(
    {b"host", b"expect", b"x-request-id", b"x-split", b"x-pool", b"x-priority", *versions.HEADERS}
)
_RESPONSE_ONLY = frozenset(
    {
        *(b"x-request-id", b"x-worker-id", b"x-weight-version", b"x-split-workers"),
        # Which web pages may read answers is for the router to say, not for a worker.
        *(b"access-control-allow-origin", b"access-control-allow-credentials"),
        *(b"access-control-allow-methods", b"access-control-allow-headers"),
        *(b"access-control-expose-headers", b"access-control-max-age"),
    }
)


# A URL with a host, in visible ASCII. Browsers drop other characters before they read a URL.
_ABSOLUTE = re.compile(rb"(?i:(https?):)?//([^/?#\\]+)([!-~]*)\Z")
_PORT = re.compile(rb":[0-9]+\Z")


def value(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    """The first value of a header, by its lower-case name."""
    for key, found in headers:
        if key.lower() == name:
            return found
    return None


def length(headers: Iterable[tuple[bytes, bytes]]) -> float:
    """The announced length of the body in bytes; infinity if none is announced."""
    found = value(headers, b"content-length") or b""
    return int(found) if found.isdigit() and len(found) < 20 else math.inf


def retry_after(status: int, headers: Sequence[tuple[bytes, bytes]]) -> float | None:
    """For how many seconds the sender asks to be left alone, None if it does not ask. 1 for a 429
    without Retry-After and for a Retry-After that makes no sense."""
    asked = value(headers, b"retry-after")
    if asked is None:
        return 1.0 if status == 429 else None
    if asked.isdigit() and len(asked) < 10:
        return float(asked)
    until, now = moment(asked), moment(value(headers, b"date"))
    if until is None:
        return 1.0
    return max(0.0, until.timestamp() - (wall.seconds() if now is None else now.timestamp()))


def for_worker(
    headers: Iterable[tuple[bytes, bytes]],
    *,
    host: bytes,
    request_id: bytes,
    peer: str | None,
    scheme: bytes,
    framing: tuple[bytes, bytes] | None,
) -> Headers:
    """The request headers for a worker.

    `host` is the worker's own. `framing` replaces the client's framing of the body. The client's
    address, host and scheme are appended as X-Forwarded-*.
    """
    given = list(headers)
    drop = _dropped(given) | _REQUEST_ONLY
    if framing is not None:
        drop |= {b"content-length"}
    kept: Headers = [(b"host", host)]
    kept += [(name, content) for name, content in given if name.lower() not in drop]
    if framing is not None:
        kept.append(framing)
    kept.append((b"x-request-id", request_id))
    if peer is not None:
        kept.append((b"x-forwarded-for", peer.encode()))
    asked_host = value(given, b"host")
    if asked_host is not None and value(given, b"x-forwarded-host") is None:
        kept.append((b"x-forwarded-host", asked_host))
    if value(given, b"x-forwarded-proto") is None:
        kept.append((b"x-forwarded-proto", scheme))
    return kept


def for_client(
    headers: Iterable[tuple[bytes, bytes]],
    *,
    request_id: bytes,
    worker_id: bytes,
    weight_version: int | None,
    bodiless: bool,
    url: str,
    address: str | None,
) -> Headers:
    """The response headers for the client, from the worker's.

    `weight_version`: the weights that the worker was to answer with, None if weights do not matter;
    a negative version is unknown. `bodiless`: a 1xx or 204, where Content-Length is not allowed
    (RFC 9110 section 8.6). `url`, `address`: where the worker is. A Location there becomes
    relative, because clients may not reach the worker and must not bypass the router.
    """
    given = list(headers)
    drop = _dropped(given) | _RESPONSE_ONLY
    if bodiless or value(given, b"transfer-encoding") is not None:
        drop |= {b"content-length"}
    kept = [(name, content) for name, content in given if name.lower() not in drop]
    for index, (name, content) in enumerate(kept):
        if name.lower() == b"location":
            kept[index] = name, _relative(content, url, address)
    kept.append((b"x-request-id", request_id))
    kept.append((b"x-worker-id", worker_id))
    if weight_version is not None and weight_version >= 0:
        kept.append((b"x-weight-version", b"%d" % weight_version))
    return kept


def _relative(location: bytes, url: str, address: str | None) -> bytes:
    """The Location without scheme and host if they are the worker's."""
    match = _ABSOLUTE.match(location)
    if match is None:
        return location
    scheme, host, rest = match[1] or url.encode().partition(b":")[0], match[2].lower(), match[3]
    if not _PORT.search(host):
        host += b":443" if scheme.lower() == b"https" else b":80"
    where = display_id(url)
    here = {where.encode()}
    if address is not None:
        shown = f"[{address}]" if ":" in address else address
        here.add(f"{shown}:{where.rpartition(':')[2]}".encode())
    if host not in here:
        return location
    path = rest if rest.startswith(b"/") else b"/" + rest
    # `//` or `/\\` would begin another host.
    return b"/." + path if path[1:2] in (b"/", b"\\") else path


def _dropped(headers: Iterable[tuple[bytes, bytes]]) -> frozenset[bytes]:
    named: set[bytes] = set()
    for name, content in headers:
        if name.lower() == b"connection":
            named.update(token.strip().lower() for token in content.split(b","))
    return HOP_BY_HOP if not named else HOP_BY_HOP | (named - _END_TO_END)
