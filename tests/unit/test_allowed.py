"""Which hosts `--allowed-worker-hosts` allows."""

from __future__ import annotations

import pytest

from router.commands.serve import reader
from router.errors import SettingsError
from router.net.allowed import AllowedHosts, NotAllowed
from router.settings import RouterSettings


@pytest.mark.parametrize(
    ("rules", "host", "address", "verdict"),
    [
        ("", "anything", None, True),
        ("gpu-1", "gpu-1", None, True),
        ("GPU-1", "gpu-1", "203.0.113.9", True),  # the name may lead anywhere
        ("gpu-1", "gpu-2", None, False),
        ("gpu-1", "10.0.0.1", None, False),
        ("*.internal", "a.b.internal", None, True),
        ("*.internal", "internal.evil.test", None, False),
        ("gpu-?", "gpu-10", None, False),
        ("10.0.0.0/8", "10.1.2.3", None, True),
        ("10.0.0.0/8", "11.1.2.3", None, False),
        ("10.0.0.7", "10.0.0.7", None, True),
        ("10.0.0.7/8", "10.9.9.9", None, True),
        ("fd00::/8", "fd00::1", None, True),
        ("10.0.0.0/8", "::ffff:10.0.0.1", None, True),
        ("10.0.0.0/8", "gpu-1", None, None),
        ("10.0.0.0/8", "gpu-1", "10.0.0.1", True),
        ("10.0.0.0/8", "gpu-1", "11.0.0.1", False),
        ("10.0.0.0/8 gpu-1", "gpu-1", "11.0.0.1", True),
        ("*", "10.0.0.1", None, True),
    ],
)
def test_verdicts(rules: str, host: str, address: str | None, verdict: bool | None) -> None:
    assert AllowedHosts(tuple(rules.split())).verdict(host, address) is verdict


def test_an_exempt_url_is_allowed() -> None:
    hosts = AllowedHosts(("gpu-1",), exempt=lambda url: url == "http://10.0.0.1")
    hosts.check("http://10.0.0.1", "10.0.0.1", "10.0.0.1")
    with pytest.raises(NotAllowed, match=r"10\.0\.0\.2 is not among"):
        hosts.check("http://10.0.0.2", "10.0.0.2", "10.0.0.2")


@pytest.mark.parametrize("rule", ["", "10.0.0.0/33", "a b", "http://gpu-1", "10.0.0.999", "gpu:80"])
def test_what_is_no_rule(rule: str) -> None:
    with pytest.raises(ValueError, match="expected a host name, a pattern"):
        RouterSettings(allowed_worker_hosts=(rule,))


def told(*flags: str) -> list[str]:
    try:
        reader(list(flags))()
    except SettingsError as error:
        return list(map(str, error.problems))
    return []


def test_urls_of_the_settings_are_checked_at_the_start() -> None:
    allowed = ["--allowed-worker-hosts", "gpu-1", "10.0.0.0/8"]
    assert (
        told("--worker-urls", "http://gpu-1:3", "http://10.1.1.1", "http://later", *allowed) == []
    )
    wrong = ["--worker-urls", "http://10.1.1.1", "http://11.1.1.1", "--pool", "t=http://[::1]:3"]
    assert told(*wrong, *allowed) == [
        "--worker-urls[1]: 11.1.1.1 is not among allowed_worker_hosts",
        "--pool[0]: ::1 is not among allowed_worker_hosts",
    ]
    assert told("--worker-urls", "http://gpu-2", *allowed[:2]) == [
        "--worker-urls[0]: gpu-2 is not among allowed_worker_hosts"
    ]
