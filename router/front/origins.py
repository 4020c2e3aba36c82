"""Which web pages may use the router: a browser says from where a request comes."""

from __future__ import annotations

import re
from ipaddress import ip_address
from urllib.parse import urlsplit

from attrs import define

from ..errors import BadRequest

READS = ("GET", "HEAD", "OPTIONS")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


class ForeignOrigin(BadRequest):
    """A web page of another origin, which `--cors-origin` does not name, sent the request."""

    default_status = 403
    default_code = "foreign_origin"


@define(eq=False)
class Origins:
    """The origins of web pages that may use the router, beside its own; `*`: any."""

    allowed: tuple[str, ...] = ()

    def names(self, origin: bytes | None) -> bool:
        """Whether `--cors-origin` names it."""
        if origin is None:
            return False
        return "*" in self.allowed or origin.decode("latin-1").lower() in self.allowed

    def refusal(
        self, host: bytes | None, origin: bytes | None, site: bytes | None, *, local: bool
    ) -> ForeignOrigin | None:
        """The error for a request that changes something, or opens a WebSocket; None if no foreign
        page can have sent it. `local`: it came from this machine. `site`: Sec-Fetch-Site, which
        browsers send over https and to localhost."""
        if self.names(origin) or site in (b"same-origin", b"none"):
            return None
        if site is None and (origin is None or _same(origin, host, local=local)):
            return None
        page = b"another site" if origin is None else origin
        said = page.decode("latin-1")
        return ForeignOrigin(f"A web page of {said} may not do this: see --cors-origin")


def _same(origin: bytes, host: bytes | None, *, local: bool) -> bool:
    """Whether the page came from the host that it asks. On this machine the host must be an address
    or localhost: any other name may be one that an attacker has led here (DNS rebinding)."""
    scheme, _, place = origin.decode("latin-1").lower().partition("://")
    default = _DEFAULT_PORTS.get(scheme, "")
    asked = (host or b"").decode("latin-1").lower()
    if not place or place.removesuffix(default) != asked.removesuffix(default):
        return False
    return not local or _is_own_name(asked)


def _is_own_name(host: str) -> bool:
    name = urlsplit(f"//{re.sub(r':[0-9]*$', '', host)}").hostname or ""
    try:
        return bool(ip_address(name))
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")
