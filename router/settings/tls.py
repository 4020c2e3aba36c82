"""The server's certificate: files become a context for TLS, or clear problems."""

from __future__ import annotations

import re
import ssl
from pathlib import Path

from attrs import frozen

from ..errors import Problem, describe
from .kinds import Unfit

_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_NOT_YET, _EXPIRED = 9, 10  # OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID and _HAS_EXPIRED


@frozen
class Certificate:
    """A context for a server, the content of its files, and the time when the certificate ends."""

    context: ssl.SSLContext
    content: bytes
    until: str  # as OpenSSL writes it; empty if unknown


def load_certificate(certificate: str, key: str, client_ca: str | None) -> Certificate:
    """Load a certificate with its chain and its key. With `client_ca`, clients must have a
    certificate of one of those CAs. Raises Unfit; the paths of its problems are flags."""
    files = {"--tls-cert": certificate, "--tls-key": key}
    if client_ca is not None:
        files["--tls-client-ca"] = client_ca
    content = {flag: _read(flag, path) for flag, path in files.items()}
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.options |= ssl.OP_NO_RENEGOTIATION  # costs a server much, and a client little
    context.set_alpn_protocols(["http/1.1"])
    first = _CERTIFICATE.search(content["--tls-cert"].decode("ascii", "replace"))
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        client.load_verify_locations(cadata=first[0] if first else "")
    except (ssl.SSLError, ValueError):
        raise _unfit("--tls-cert", f"{certificate} contains no valid PEM certificate") from None
    _load_chain(context, certificate, key)
    until = _valid_until(context, client, certificate)
    if client_ca is not None:
        try:
            context.load_verify_locations(cafile=client_ca)
        except ssl.SSLError:
            message = f"{client_ca} contains no valid PEM certificate"
            raise _unfit("--tls-client-ca", message) from None
        context.verify_mode = ssl.CERT_REQUIRED
    return Certificate(context, b"\n".join(content.values()), until)


def _read(flag: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise _unfit(flag, f"{path} cannot be read: {describe(error)}") from None


def _load_chain(context: ssl.SSLContext, certificate: str, key: str) -> None:
    asked = False

    def no_passphrase() -> str:
        nonlocal asked
        asked = True
        return ""

    try:
        context.load_cert_chain(certificate, key, no_passphrase)
    except ssl.SSLError as error:
        if asked:
            message = f"{key} is encrypted, and the router asks for no passphrase"
            raise _unfit("--tls-key", message) from None
        match error.reason:
            case "KEY_VALUES_MISMATCH" | "KEY_TYPE_MISMATCH":
                message = f"{key} does not belong to the certificate in {certificate}"
                raise _unfit("--tls-key", message) from None
            case str(reason) if "TOO" in reason:  # EE_KEY_TOO_SMALL, CA_MD_TOO_WEAK
                words = reason.lower().replace("_", " ")
                raise _unfit("--tls-cert", f"{certificate} cannot be used: {words}") from None
        raise _unfit("--tls-key", f"{key} contains no valid PEM key") from None
    except OSError as error:
        raise _unfit("--tls-cert", f"{certificate} cannot be read: {describe(error)}") from None


def _valid_until(server: ssl.SSLContext, client: ssl.SSLContext, path: str) -> str:
    """Let a client that trusts just this certificate connect in memory: OpenSSL checks its dates,
    which Python cannot read from a file. Returns when the certificate ends."""
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = client.wrap_bio(back, there), server.wrap_bio(there, back, server_side=True)
    for end in (*ends, *ends):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLCertVerificationError as error:
            if error.verify_code in (_NOT_YET, _EXPIRED):
                raise _unfit("--tls-cert", f"{path}: {error.verify_message}") from None
            return ""  # clients may know better
        except ssl.SSLError:
            return ""
    told = (ends[0].getpeercert() or {}).get("notAfter", "")
    return told if isinstance(told, str) else ""


def _unfit(flag: str, message: str) -> Unfit:
    return Unfit([Problem(flag, message)])
