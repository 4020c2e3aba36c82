"""Worker URLs: one spelling per worker, and refusal of what no worker can have."""

# ruff: noqa: RUF001 - look-alikes are what is tested

from __future__ import annotations

import pytest

from router.pool.ids import BadWorkerURL, display_id, normalise_url, url_of, worker_id


@pytest.mark.parametrize(
    ("given", "normal"),
    [
        ("http://worker:8000", "http://worker:8000"),
        ("  HTTP://Worker.Example:8000/  ", "http://worker.example:8000"),
        ("http://worker.:8000", "http://worker:8000"),
        ("http://worker:80", "http://worker"),
        ("https://worker:443/", "https://worker"),
        ("https://worker:80", "https://worker:80"),
        ("http://worker:00080", "http://worker"),
        ("http://worker:", "http://worker"),
        ("http://my_worker:8000", "http://my_worker:8000"),
        ("http://127.0.0.1:1", "http://127.0.0.1:1"),
        ("http://127.1:1", "http://127.0.0.1:1"),
        ("http://2130706433:1", "http://127.0.0.1:1"),
        ("http://0x7f.0.0.0x1:1", "http://127.0.0.1:1"),
        ("http://0X7F000001", "http://127.0.0.1"),
        ("http://0177.0.0.01", "http://127.0.0.1"),
        ("http://10.0.5", "http://10.0.0.5"),
        ("http://127.0.0.1.:1", "http://127.0.0.1:1"),
        ("http://１２７.０.０.１:1", "http://127.0.0.1:1"),
        ("http://127。0。0。1:1", "http://127.0.0.1:1"),
        ("http://[::1]:8000", "http://[::1]:8000"),
        ("http://[0:0::0:1]:80", "http://[::1]"),
        ("http://[FD00::A]:8000", "http://[fd00::a]:8000"),
        ("http://bücher.example:8000", "http://xn--bcher-kva.example:8000"),
    ],
)
def test_every_spelling_becomes_one(given: str, normal: str) -> None:
    assert normalise_url(given) == normal
    assert normalise_url(normal) == normal


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("worker:8000", "did you mean http://worker:8000?"),
        ("//worker:8000", "did you mean http://worker:8000?"),
        ("localhost", "no scheme"),
        ("//worker:8000", "no scheme"),
        ("ftp://worker", "only http and https"),
        ("file:///etc/passwd", "only http and https"),
        ("unix:///run/worker.sock", "only http and https"),
        ("://worker", "only http and https"),
        ("http://", "no host"),
        ("http://:8000", "no host"),
        ("http:///v1", "must not contain a path"),
        ("http://worker:8000/v1", "must not contain a path (found '/v1')"),
        ("http://worker:8000//", "must not contain a path"),
        ("http://worker:8000?", "must not contain a query"),
        ("http://worker:8000/?a=b", "must not contain a query"),
        ("http://worker:8000#", "must not contain a fragment"),
        ("http://worker:8000/#x", "must not contain a fragment"),
        ("http://worker:0", "port 0"),
        ("http://worker:65536", "not valid"),
        ("http://worker:-1", "not valid"),
        ("http://worker:eighty", "not valid"),
        ("http://worker:80:80", "not valid"),
        ("http://worker:８０", "not valid"),
        ("http://wor ker", "white space"),
        ("http://worker\n:80", "white space"),
        ("http://worker\x00", "control character"),
        ("http://worker\x7f", "control character"),
        ("http:\\\\worker", "'\\'"),
        ("http://worker\\@other", "credentials"),
        ("http://-worker", "not a valid name"),
        ("http://worker-", "not a valid name"),
        ("http://wor..ker", "not a valid name"),
        ("http://worker..", "not a valid name"),
        ("http://.worker", "not a valid name"),
        ("http://wor%6ber", "not a valid name"),
        ("http://wor\ud800ker", "not a valid name"),
        ("http://" + "a" * 64, "not a valid name"),
        ("http://" + ".".join(["a" * 60] * 5), "not a valid name"),
        ("http://1.2.3.4.5", "malformed IPv4"),
        ("http://256.0.0.1", "malformed IPv4"),
        ("http://1.2.3.256", "malformed IPv4"),
        ("http://08.0.0.1", "malformed IPv4"),
        ("http://4294967296", "malformed IPv4"),
        ("http://worker.0x10", "malformed IPv4"),
        ("http://[::1", "not valid"),
        ("http://[]", "not valid|no host"),
        ("http://[::1]x", "not valid|after the IPv6"),
        ("http://[:::1]", "not valid"),
        ("http://[v1.a]", "not valid"),
        ("http://" + "a" * 2000, "longer than 1024"),
    ],
)
def test_what_is_no_worker_url_is_refused_with_the_reason(given: str, says: str) -> None:
    with pytest.raises(BadWorkerURL) as caught:
        normalise_url(given)
    assert any(part in caught.value.message for part in says.split("|")), caught.value.message
    assert caught.value.status == 400
    assert caught.value.code == "bad_worker_url"
    assert len(caught.value.message) < 1500


BLOCKED = [
    "169.254.169.254",
    "169.254.0.1",
    "169.254.169.254.",
    "169.254.43518",
    "169.16689662",
    "2852039166",
    "0xa9fea9fe",
    "0XA9FEA9FE",
    "0xa9.0xfe.0xa9.0xfe",
    "0251.0376.0251.0376",
    "025177524776",
    "169.254.0xa9.0376",
    "0000000000000251.254.169.254",
    "１６９.２５４.１６９.２５４",
    "169。254．169｡254",
    "169.254.169\u00ad.254",
    "①⑥⑨.254.169.254",
    "[::ffff:169.254.169.254]",
    "[::ffff:a9fe:a9fe]",
    "[::169.254.169.254]",
    "[64:ff9b::169.254.169.254]",
    "[64:ff9b:1::a9fe:a9fe]",
    "[::ffff:0:169.254.169.254]",
    "[2002:a9fe:a9fe::1]",
    "[2001:0:1:2:3:4:5601:5601]",
    "[fe80::1]",
    "[FE80::1]",
    "[fe80::1%25eth0]",
    "[fe80::1%eth0]",
    "[::1%lo]",
    "[febf::1]",
    "[fd00:ec2::254]",
    "[fd00:0ec2:0:0:0:0:0:0254]",
    "[fd20:ce::254]",
    "100.100.100.200",
    "[::ffff:100.100.100.200]",
    "192.0.0.192",
    "168.63.129.16",
    "metadata",
    "METADATA.google.internal",
    "metadata.google.internal.",
    "ｍetadata.google.internal",
    "instance-data",
]


@pytest.mark.parametrize("scheme", ["http://", "HTTPS://"])
@pytest.mark.parametrize("tail", ["", ":8000", "/"])
@pytest.mark.parametrize("host", BLOCKED)
def test_link_local_and_metadata_hosts_are_blocked(host: str, tail: str, scheme: str) -> None:
    with pytest.raises(BadWorkerURL, match="blocked"):
        normalise_url(scheme + host + tail)


@pytest.mark.parametrize(
    "host",
    ["169.253.255.255", "169.255.0.0", "[2001:db8::a9fe:a9fe]", "metadata.example", "0.0.0.0"],
)
def test_their_neighbours_are_not(host: str) -> None:
    assert normalise_url(f"http://{host}:8000") == f"http://{host}:8000"


@pytest.mark.parametrize(
    "given",
    [
        "http://user:hunter2@worker:80",
        "http://user:hunter2@worker:80/path?q#f",
        "http://user:hunter2 @worker",
        "http://user:hunter2\t@worker",
        "user:hunter2@worker:80",
        "ftp://user:hunter2@worker",
        "http://user:hunter2%40worker",
        "http://user:hunter2＠worker",
        "http://user:hunter2@" + "a" * 5000,
        "http://hunter2@",
    ],
)
def test_credentials_are_refused_and_never_repeated(given: str) -> None:
    with pytest.raises(BadWorkerURL, match="credentials") as caught:
        normalise_url(given)
    assert "hunter2" not in caught.value.message


@pytest.mark.parametrize(
    ("arrives", "url"),
    [
        ("http%3A%2F%2Fworker%3A8000", "http://worker:8000"),
        ("http%253A%252F%252Fworker%253A8000", None),
        ("http://worker:8000", "http://worker:8000"),
        ("http:/worker:8000", "http://worker:8000"),
        ("HTTP:/worker:8000/", "http://worker:8000"),
        ("https:/worker", "https://worker"),
        ("http%3A%2F%2F%5B%3A%3A1%5D%3A8000", "http://[::1]:8000"),
        ("http:///worker", None),
        ("worker:8000", None),
    ],
)
def test_an_id_may_arrive_decoded_or_with_merged_slashes(arrives: str, url: str | None) -> None:
    if url is None:
        with pytest.raises(BadWorkerURL):
            url_of(arrives)
    else:
        assert url_of(arrives) == url


def test_an_id_is_one_path_segment() -> None:
    assert worker_id("http://worker:8000") == "http%3A%2F%2Fworker%3A8000"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://worker", "worker:80"),
        ("https://worker", "worker:443"),
        ("http://worker:8000", "worker:8000"),
        ("http://[::1]:8000", "[::1]:8000"),
        ("http://[::1]", "[::1]:80"),
    ],
)
def test_people_see_host_and_port(url: str, shown: str) -> None:
    assert display_id(url) == shown
