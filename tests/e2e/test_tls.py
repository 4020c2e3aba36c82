"""A router with a certificate, from outside; SIGHUP renews the certificate."""

from __future__ import annotations

import json
import os
import shutil
import signal
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import Certificate, certificate, needed
from tests.e2e.test_serve import WITHIN, running, worker

pytestmark = [needed, pytest.mark.skipif(os.name != "posix", reason="SIGHUP is POSIX")]


def call(url: str, trusted: Certificate, body: Any = None) -> Any:
    """The answer, if the router has this certificate; else an OSError."""
    https = urllib.request.HTTPSHandler(context=trusted.client())
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}), https)
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(url, data, {"content-type": "application/json"})
    with direct.open(asked, timeout=WITHIN) as answer:
        return json.load(answer)


def test_a_certificate_is_served_and_renewed(router_pyz: Path, tmp_path: Path) -> None:
    old = certificate(tmp_path, "IP:127.0.0.1")
    (tmp_path / "new").mkdir()
    new = certificate(tmp_path / "new", "IP:127.0.0.1")
    flags = ["--host", "127.0.0.1", "--port", "0", *old.flags]
    trusted = Certificate(tmp_path / "trusted.pem", old.key)
    shutil.copy(old.file, trusted.file)
    with (
        worker(router_pyz) as (_, url),
        running(router_pyz, *flags, "--worker-urls", url) as program,
    ):
        at = program.wait_for(r"listening on (https://\S+)")[1]
        program.wait_for("clients get a certificate that is valid until")
        assert call(f"{at}/live", trusted) == {"status": "ok"}
        program.wait_for("-> healthy")
        made = call(f"{at}/v1/images/generations", trusted, {"prompt": "x", "size": "64x64"})
        assert made["data"]
        with pytest.raises(urllib.error.HTTPError) as plain:
            urllib.request.urlopen(at.replace("https", "http"), timeout=WITHIN)
        assert plain.value.code == 400
        assert json.load(plain.value)["code"] == "tls_required"

        old.file.write_text("broken")
        program.process.send_signal(signal.SIGHUP)
        program.wait_for(r"ERROR   The settings stay as they were: --tls-cert: .* no valid PEM")
        assert call(f"{at}/live", trusted) == {"status": "ok"}

        shutil.copy(new.key, old.key)
        shutil.copy(new.file, old.file)
        program.process.send_signal(signal.SIGHUP)
        program.wait_for("settings reloaded: applied: tls_cert\n")
        assert call(f"{at}/live", new) == {"status": "ok"}
        with pytest.raises(urllib.error.URLError) as refused:
            call(f"{at}/live", trusted)
        assert isinstance(refused.value.reason, ssl.SSLCertVerificationError)
        program.process.send_signal(signal.SIGTERM)
        assert program.ends() == 0
