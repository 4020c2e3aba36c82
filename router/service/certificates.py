"""The certificate that clients see, renewed with each reload."""

from __future__ import annotations

import logging
import ssl

from ..server import Tls
from ..settings import Certificate, RouterSettings, load_certificate
from ..settings.kinds import Unfit
from ..wall import seconds
from .reload import Reload

logger = logging.getLogger("router.service")

_SOON = 14 * 24 * 3600  # seconds before its end at which a certificate should have been renewed


def certificates_of(settings: RouterSettings, reload: Reload) -> Tls | None:
    """The server's TLS, if the settings ask for it. A reload reads the files again: connections
    that stand keep what they have, and files that cannot be used change nothing."""
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    files = settings.tls_cert, settings.tls_key, settings.tls_client_ca
    loaded = load_certificate(*files)
    _tell(loaded)
    tls = Tls(loaded.context)

    def renew() -> tuple[str, ...]:
        nonlocal loaded
        try:
            found = load_certificate(*files)
        except Unfit as unfit:
            logger.error("clients still get the certificate from before: %s", unfit)
            return ()
        if found.content == loaded.content:
            return ()
        loaded, tls.context = found, found.context
        _tell(found)
        return ("tls_cert",)

    reload.renewals.append(renew)
    return tls


def _tell(certificate: Certificate) -> None:
    if not certificate.until:
        return
    left = ssl.cert_time_to_seconds(certificate.until) - seconds()
    level = logging.INFO if left > _SOON else logging.WARNING
    logger.log(level, "clients get a certificate that is valid until %s", certificate.until)
