"""A client's WebSocket handshake, checked here because hypercorn and wsproto trust its contents.

They get one field of each kind, with well-formed elements (RFC 6455 section 4.2.1).
"""

from __future__ import annotations

import re

import h11

from ..errors import BadRequest

Headers = list[tuple[bytes, bytes]]

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 section 5.6.2
_BITS = rb"(?:8|9|1[0-5])"
_PARAMETER = re.compile(
    rb"(?P<name>(?:client|server)_no_context_takeover"
    rb"|client_max_window_bits(?:\s*=\s*%b)?|server_max_window_bits\s*=\s*%b)" % (_BITS, _BITS)
)
_LISTS = (b"connection", b"sec-websocket-protocol", b"sec-websocket-extensions")


class UpgradeRequired(BadRequest):
    """The client must use another version of the WebSocket protocol (RFC 6455 section 4.4)."""

    default_status = 426


def tokens(value: bytes) -> list[bytes]:
    """The elements of a comma-separated list, in lower case, without empty ones."""
    return [element.lower() for element in _elements(value)]


def vetted(request: h11.Request) -> tuple[Headers, list[str]]:
    """The headers of a handshake, fit for hypercorn, and the subprotocols on offer.

    Raises BadRequest if the request is no handshake. Malformed offers of extensions are dropped.
    """
    lists: dict[bytes, list[bytes]] = {name: [] for name in _LISTS}
    headers: Headers = []
    key = version = b""
    for name, value in request.headers:
        value = value.strip()
        if name in _LISTS:
            lists[name] += _elements(value)
            continue
        if name == b"sec-websocket-key":
            key = value
        elif name == b"sec-websocket-version":
            version = value
        elif name == b"transfer-encoding" or (name == b"content-length" and int(value)):
            raise BadRequest("A WebSocket handshake must not have a body")
        headers.append((name, value))
    if request.http_version != b"1.1" or not key.isascii() or not key:
        raise BadRequest("A WebSocket handshake needs HTTP/1.1 and a Sec-WebSocket-Key")
    if version != b"13":
        raise UpgradeRequired(
            "This server supports only version 13 of the WebSocket protocol",
            headers=[("Sec-WebSocket-Version", "13")],
        )
    connection, protocols, extensions = lists.values()
    for element in (*connection, *protocols):
        if not _TOKEN.fullmatch(element):
            raise BadRequest("Connection or Sec-WebSocket-Protocol contains an invalid token")
    headers.append((b"connection", b", ".join(connection)))
    if protocols:
        headers.append((b"sec-websocket-protocol", b", ".join(protocols)))
    if offer := next(filter(_makes_sense, extensions), None):
        headers.append((b"sec-websocket-extensions", offer))
    return headers, [protocol.decode("ascii") for protocol in protocols]


def _elements(value: bytes) -> list[bytes]:
    return [element for part in value.split(b",") if (element := part.strip())]


def _makes_sense(offer: bytes) -> bool:
    """Whether an offer is a permessage-deflate offer as RFC 7692 section 7 defines it."""
    name, *parameters = (part.strip() for part in offer.split(b";"))
    found = [_PARAMETER.fullmatch(parameter) for parameter in parameters]
    names = [match["name"].partition(b"=")[0].strip() for match in found if match]
    return name == b"permessage-deflate" and None not in found and len(names) == len(set(names))
