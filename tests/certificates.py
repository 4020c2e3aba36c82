"""Certificates for tests, made by the openssl program."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest
from attrs import frozen

needed = pytest.mark.skipif(shutil.which("openssl") is None, reason="makes certificates")


@frozen
class Certificate:
    file: Path
    key: Path

    def server(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.file, self.key)
        return context

    def client(self, own: Certificate | None = None) -> ssl.SSLContext:
        """What a client needs that trusts this certificate and may have one of its own."""
        context = ssl.create_default_context(cafile=self.file)
        if own is not None:
            context.load_cert_chain(own.file, own.key)
        return context

    @property
    def flags(self) -> list[str]:
        return ["--tls-cert", str(self.file), "--tls-key", str(self.key)]


def certificate(folder: Path, name: str, *more: str) -> Certificate:
    """A certificate that is its own CA, for a name such as `IP:127.0.0.1`."""
    made = Certificate(folder / f"{name}.pem", folder / f"{name}.key")
    command = [
        *("openssl", "req", "-x509", "-nodes", "-newkey", "ec"),
        *("-pkeyopt", "ec_paramgen_curve:prime256v1"),
        *("-days", "2", "-subj", "/CN=test", "-addext", f"subjectAltName={name}"),
        *("-out", str(made.file), "-keyout", str(made.key), *more),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return made
