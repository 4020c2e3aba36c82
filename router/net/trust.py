"""How workers and the router prove their identity to each other: certificates and a key."""

from __future__ import annotations

import ssl

from attrs import define, field

_CREDENTIALS = (b"authorization", b"x-api-key")

Headers = list[tuple[bytes, bytes]]


@define(eq=False)
class Trust:
    """The trust that all connections to workers share.

    `ca`: a file of certificates to check https workers with, instead of the system's (which
    `SSL_CERT_FILE` changes). `insecure`: no checks. `key`: the key that workers require.
    """

    ca: str | None = None
    insecure: bool = False
    key: str | None = field(default=None, repr=False)
    _tls: ssl.SSLContext | None = field(init=False, default=None, repr=False)

    @property
    def tls(self) -> ssl.SSLContext:
        """Made once, because reading the system's certificates takes tens of milliseconds. Raises
        OSError (ssl.SSLError is one) if `ca` cannot be used."""
        if self._tls is None:
            self._tls = ssl.create_default_context(cafile=self.ca)
            if self.insecure:
                self._tls.check_hostname = False
                self._tls.verify_mode = ssl.CERT_NONE
        return self._tls

    def present(self, headers: Headers) -> Headers:
        """The headers of a request to a worker; if there is a key, it replaces any other."""
        if self.key is None:
            return headers
        kept = [header for header in headers if header[0].lower() not in _CREDENTIALS]
        return [*kept, (b"authorization", b"Bearer " + self.key.encode("ascii"))]
