"""Certificates for clients: what is wrong with the files is said at the start."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

import pytest

from router.errors import SettingsError
from router.settings import RouterSettings, load, split_flags, with_credentials
from tests.certificates import Certificate, certificate, needed

pytestmark = needed


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return certificate(tmp_path_factory.mktemp("tls"), "DNS:router")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return certificate(tmp_path_factory.mktemp("tls"), "DNS:other")


def told(*flags: object) -> list[str]:
    """The problems of a start with these flags."""
    given = split_flags(list(map(str, flags)), RouterSettings)
    try:
        load(RouterSettings, given, steps=[with_credentials])
    except SettingsError as error:
        return [str(problem) for problem in error.problems]
    return []


def test_good_files(right: Certificate, other: Certificate) -> None:
    assert told(*right.flags) == []
    assert told(*right.flags, "--tls-client-ca", other.file) == []


def test_both_or_none(right: Certificate) -> None:
    lacks = "is missing: tls_cert and tls_key belong together"
    assert told("--tls-cert", right.file) == [f"--tls-key: {lacks}"]
    assert told("--tls-key", right.key) == [f"--tls-cert: {lacks}"]
    assert told("--tls-client-ca", right.file) == ["--tls-client-ca: needs tls_cert and tls_key"]


def test_missing_files(right: Certificate, tmp_path: Path) -> None:
    none = tmp_path / "none.pem"
    missing = f"{none} cannot be read: no such file or directory"
    assert told("--tls-cert", none, "--tls-key", right.key) == [f"--tls-cert: {missing}"]
    assert told("--tls-cert", right.file, "--tls-key", none) == [f"--tls-key: {missing}"]
    assert told(*right.flags, "--tls-client-ca", none) == [f"--tls-client-ca: {missing}"]


def test_files_that_hold_something_else(right: Certificate, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_bytes(b"hello \xff")
    spoilt = tmp_path / "spoilt.pem"
    spoilt.write_text(right.file.read_text().replace("M", "N"))
    for wrong in (text, spoilt, right.key):
        message = f"{wrong} contains no valid PEM certificate"
        assert told("--tls-cert", wrong, "--tls-key", right.key) == [f"--tls-cert: {message}"]
        if wrong != right.key:
            told_of_ca = told(*right.flags, "--tls-client-ca", wrong)
            assert told_of_ca == [f"--tls-client-ca: {message}"]
    for wrong in (text, right.file):
        message = f"{wrong} contains no valid PEM key"
        assert told("--tls-cert", right.file, "--tls-key", wrong) == [f"--tls-key: {message}"]


def test_a_key_of_another_certificate(right: Certificate, other: Certificate) -> None:
    message = f"{other.key} does not belong to the certificate in {right.file}"
    assert told("--tls-cert", right.file, "--tls-key", other.key) == [f"--tls-key: {message}"]


def test_an_encrypted_key(right: Certificate, tmp_path: Path) -> None:
    sealed = tmp_path / "sealed.key"
    command = ["openssl", "pkey", "-in", right.key, "-aes256", "-passout", "pass:x", "-out", sealed]
    subprocess.run(command, check=True, capture_output=True)
    message = f"{sealed} is encrypted, and the router asks for no passphrase"
    assert told("--tls-cert", right.file, "--tls-key", sealed) == [f"--tls-key: {message}"]


def test_an_expired_certificate(tmp_path: Path) -> None:
    old = certificate(tmp_path, "DNS:old")
    command = ["openssl", "x509", "-signkey", old.key, "-days", "-1", "-in", old.file]
    subprocess.run([*command, "-out", old.file], check=True, capture_output=True)
    assert told(*old.flags) == [f"--tls-cert: {old.file}: certificate has expired"]


def test_a_certificate_that_only_clients_may_doubt_is_used(tmp_path: Path) -> None:
    """The router does not judge for its clients."""
    odd = certificate(tmp_path, "DNS:odd", "-addext", "extendedKeyUsage=emailProtection")
    assert told(*odd.flags) == []


def test_the_end_of_the_certificate_is_known(right: Certificate) -> None:
    from router.settings import load_certificate

    loaded = load_certificate(str(right.file), str(right.key), None)
    assert ssl.cert_time_to_seconds(loaded.until) > 0
