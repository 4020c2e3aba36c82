"""Worker URLs: one spelling per worker, and refusal of addresses that no worker can have.

A worker URL makes the router send requests to an address that the caller chooses. Link-local and
cloud metadata addresses are therefore refused in every spelling that a resolver would accept
(decimal, hexadecimal, octal, short, IPv6-mapped; trailing dots).
"""

from __future__ import annotations

import re
import unicodedata
from contextlib import suppress
from functools import lru_cache
from ipaddress import AddressValueError, IPv4Address, IPv6Address, IPv6Network
from urllib.parse import quote, unquote, urlsplit

from ..errors import BadRequest

_DEFAULT_PORTS = {"http": 80, "https": 443}

# Names and addresses under which clouds serve instance credentials.
_METADATA_HOSTS = frozenset(
    {
        "metadata",
        "metadata.google.internal",
        "metadata.goog",
        "metadata.azure.com",
        "metadata.azure.internal",
        "metadata.packet.net",
        "metadata.platformequinix.com",
        "instance-data",
        "instance-data.ec2.internal",
    }
)
_METADATA_ADDRESSES = frozenset(
    {
        IPv4Address("100.100.100.200"),  # Alibaba Cloud
        IPv4Address("192.0.0.192"),  # Oracle Cloud
        IPv4Address("168.63.129.16"),  # Azure wire server
        IPv6Address("fd00:ec2::254"),  # AWS
        IPv6Address("fd20:ce::254"),  # Google Cloud
    }
)
# IPv6 ranges that carry an IPv4 address in their last 32 bits.
_NAT64 = (
    IPv6Network("64:ff9b::/96"),
    IPv6Network("64:ff9b:1::/48"),
    IPv6Network("::/96"),
    IPv6Network("::ffff:0:0:0/96"),
)

_LONGEST = 1024  # characters of a URL; a name has at most 253

_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)\Z")
_IPV4_PART = re.compile(r"(0x[0-9a-f]*|[0-9]+)\Z")


class BadWorkerURL(BadRequest):
    """The text is not a URL that a worker can have."""

    default_code = "bad_worker_url"


def normalise_url(text: str) -> str:
    """The one spelling of a worker's URL: `scheme://host[:port]`, lower case, no trailing slash.

    The default port of the scheme is left out; every spelling of an IPv4 address becomes dotted.
    Raises BadWorkerURL for anything but http/https with a bare host and port, and for blocked
    addresses (the message then says `blocked`).
    """
    url = text.strip()
    if not url:
        raise BadWorkerURL("The worker URL is empty; expected something like http://host:port")
    # This check comes first: later messages would repeat the password, or a megabyte of text.
    if "@" in unicodedata.normalize("NFKC", unquote(url)):
        raise BadWorkerURL("A worker URL must not contain credentials ('@')")
    if len(text) > _LONGEST:
        raise BadWorkerURL(f"The worker URL is longer than {_LONGEST} characters")
    if any(ord(c) <= 32 or ord(c) == 127 for c in url) or "\\" in url:
        raise _bad(text, "contains white space, a control character or '\\'")
    scheme, separator, _ = url.partition("://")
    if not separator:
        raise _bad(text, f"has no scheme; did you mean http://{url.lstrip('/')}?")
    if scheme.lower() not in _DEFAULT_PORTS:
        raise _bad(text, f"has the scheme {scheme!r}; only http and https are supported")
    scheme = scheme.lower()
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise _bad(text, f"is not valid: {error}") from None
    if "?" in url:
        raise _bad(text, "must not contain a query")
    if "#" in url:
        raise _bad(text, "must not contain a fragment")
    if parts.path not in ("", "/"):
        raise _bad(text, f"must not contain a path (found {parts.path!r})")
    if port == 0:
        raise _bad(text, "has port 0; expected 1 to 65535")
    host = _normalise_host(parts.hostname or "", parts.netloc, text)
    if port is None or port == _DEFAULT_PORTS[scheme]:
        return f"{scheme}://{host}"
    return f"{scheme}://{host}:{port}"


def _bad(text: str, why: str) -> BadWorkerURL:
    return BadWorkerURL(f"Worker URL {text!r} {why}")


@lru_cache(4096)
def worker_id(url: str) -> str:
    """The id of the worker with this normalised URL: the URL percent-encoded."""
    return quote(url, safe="")


def url_of(worker_id: str) -> str:
    """The normalised URL behind a worker id, even if a proxy has decoded the id on the way.

    Raises BadWorkerURL if the id does not hold a URL.
    """
    text = unquote(worker_id)
    # Proxies that merge slashes turn http://h into http:/h.
    merged = re.match(r"(https?):/(?!/)", text, re.IGNORECASE)
    if merged:
        text = f"{merged[1]}://{text[merged.end() :]}"
    return normalise_url(text)


def names_url(worker_id: str) -> bool:
    """Whether the text is a URL or the id of one, and not the name of a worker."""
    return re.match(r"[a-z][a-z0-9+.-]*:/", unquote(worker_id), re.IGNORECASE) is not None


def names_of(text: str) -> frozenset[str]:
    """The names that may be meant: the text itself, and `host:port` in its one normal spelling."""
    text = unquote(text)
    names = {text}
    with suppress(BadWorkerURL):
        names.add(display_id(normalise_url(f"http://{text}")))
    return frozenset(names)


def display_id(url: str) -> str:
    """A short name for people: `host:port`."""
    parts = urlsplit(url)
    port = parts.port or _DEFAULT_PORTS[parts.scheme]
    return f"{parts.netloc if parts.port is None else parts.netloc.rpartition(':')[0]}:{port}"


def is_blocked_address(address: IPv4Address | IPv6Address) -> bool:
    """Whether the address is link-local or a cloud's metadata service, also inside IPv6."""
    inner = _embedded_ipv4(address) if isinstance(address, IPv6Address) else None
    if inner is not None and is_blocked_address(inner):
        return True
    return address.is_link_local or address in _METADATA_ADDRESSES


def _normalise_host(host: str, netloc: str, text: str) -> str:
    if not host:
        raise _bad(text, "has no host")
    if netloc.startswith("["):
        if not re.fullmatch(r"\[[^\]]*\](:[0-9]*)?", netloc):
            raise _bad(text, "has text after the IPv6 address")
        try:
            six = IPv6Address(host)
        except AddressValueError as error:
            raise _bad(text, f"is not valid: {error}") from None
        if six.scope_id is not None:
            raise _bad(text, "is blocked: it names a link-local zone")
        if is_blocked_address(six):
            raise _bad(text, "is blocked: link-local or metadata address")
        return f"[{six.compressed}]"
    try:
        # IDNA turns full-width digits and dots into the characters that a resolver sees.
        host = host.encode("ascii").decode() if host.isascii() else host.encode("idna").decode()
    except UnicodeError:
        raise _bad(text, "has a host that is not a valid name") from None
    host = host.lower().removesuffix(".")
    four = _parse_ipv4(host)
    if four is not None:
        if is_blocked_address(four):
            raise _bad(text, "is blocked: link-local or metadata address")
        return str(four)
    if host in _METADATA_HOSTS:
        raise _bad(text, "is blocked: metadata service")
    labels = host.split(".")
    if len(host) > 253 or not all(_LABEL.match(label) for label in labels):
        raise _bad(text, f"has a host that is not a valid name: {host!r}")
    if _IPV4_PART.match(labels[-1]):
        raise _bad(text, f"has a malformed IPv4 address: {host!r}")
    return host


def _parse_ipv4(host: str) -> IPv4Address | None:
    """The address as inet_aton(3) reads it: one to four parts, decimal, 0-octal or 0x-hex."""
    parts = host.split(".")
    if len(parts) > 4 or not all(_IPV4_PART.match(part) for part in parts):
        return None
    try:
        *leading, last = map(_ipv4_number, parts)
    except ValueError:  # an 8 or 9 in an octal number
        return None
    if any(value > 255 for value in leading) or last >= 256 ** (4 - len(leading)):
        return None
    return IPv4Address(bytes(leading) + last.to_bytes(4 - len(leading), "big"))


def _ipv4_number(part: str) -> int:
    if part.startswith("0x"):
        return int(part[2:] or "0", 16)
    return int(part, 8 if part[0] == "0" else 10)


def _embedded_ipv4(address: IPv6Address) -> IPv4Address | None:
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    if any(address in network for network in _NAT64):
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return None
