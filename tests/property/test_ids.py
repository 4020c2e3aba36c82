"""Worker URLs, for all that anybody may write."""

# ruff: noqa: RUF001 - look-alikes are what is tested

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from router.pool.ids import BadWorkerURL, display_id, normalise_url, url_of, worker_id

_LABEL = st.from_regex(r"[a-z0-9]([a-z0-9_-]{0,10}[a-z0-9])?", fullmatch=True)
_NAMES = st.lists(_LABEL, min_size=1, max_size=4).map(".".join)
_SIX = st.ip_addresses(v=6).map(lambda six: f"[{six.compressed}]")
_HOSTS = st.one_of(_NAMES, st.ip_addresses(v=4).map(str), _SIX)
_PORTS = st.one_of(st.none(), st.integers(1, 65535))
# Dense in what has a meaning somewhere, thin in the rest.
_TEXTS = st.one_of(
    st.text(),
    st.text(alphabet="htps:/.@[]%?#0x129６。ａ\\ _-\ud800", max_size=30),
    st.text(max_size=20).map("http://".__add__),
    st.text(alphabet="0x19.afAF:[]%ß＠／ⅷ。-", max_size=20).map("http://".__add__),
)


def normal_or_none(text: str) -> str | None:
    try:
        return normalise_url(text)
    except BadWorkerURL:
        return None


@given(scheme=st.sampled_from(["http", "https"]), host=_HOSTS, port=_PORTS)
def test_url_to_id_to_url(scheme: str, host: str, port: int | None) -> None:
    url = normal_or_none(f"{scheme}://{host}" + (f":{port}" if port else ""))
    assume(url is not None)
    assert url is not None
    ident = worker_id(url)
    assert "/" not in ident
    assert ":" not in ident
    assert url_of(ident) == url  # as it stands in a path
    assert url_of(url) == url  # decoded by a proxy
    assert url_of(url.replace("//", "/")) == url  # and its slashes merged
    assert display_id(url).endswith(f":{port or (80 if scheme == 'http' else 443)}")


@given(_TEXTS)
@example("http://\u0130")
@example("http://xn--a")
def test_any_text_is_refused_or_becomes_the_one_spelling(text: str) -> None:
    url = normal_or_none(text)  # and nothing else is raised
    if url is not None:
        assert normalise_url(url) == url
        assert url.isascii()
        assert url == url.lower()
        assert url_of(worker_id(url)) == url


@given(_TEXTS)
def test_any_text_is_an_id_or_refused(text: str) -> None:
    try:
        url = url_of(text)
    except BadWorkerURL:
        return
    assert normalise_url(url) == url


def _part(value: int, form: str) -> str:
    return {"d": f"{value}", "x": f"0x{value:x}", "X": f"0X{value:08X}", "o": f"0{value:o}"}[form]


_WIDE = str.maketrans("0123456789.", "０１２３４５６７８９。")


@st.composite
def _spellings(draw: st.DrawFn) -> tuple[IPv4Address, str]:
    """An IPv4 address and one of the ways to write it that resolvers understand."""
    address = IPv4Address(draw(st.integers(0, 2**32 - 1)))
    octets = list(address.packed)
    given_alone = draw(st.integers(0, 3))
    values = octets[:given_alone]
    values.append(int.from_bytes(bytes(octets[given_alone:])))
    text = ".".join(_part(value, draw(st.sampled_from("dxXo"))) for value in values)
    text += draw(st.sampled_from(["", "."]))
    return address, text.translate(_WIDE) if draw(st.booleans()) else text


@given(_spellings())
def test_every_spelling_of_an_ipv4_address_is_that_address(
    spelling: tuple[IPv4Address, str],
) -> None:
    address, text = spelling
    url = normal_or_none(f"http://{text}:8000")
    assert url in (f"http://{address}:8000", None)
    assert (url is None) == (normal_or_none(f"http://{address}:8000") is None)


@given(low=st.integers(0, 0xFFFF), data=st.data())
def test_every_spelling_of_every_link_local_address_is_blocked(
    low: int, data: st.DataObject
) -> None:
    number = 0xA9FE_0000 | low
    octets = number.to_bytes(4)
    alone = data.draw(st.integers(0, 3))
    values = [*octets[:alone], int.from_bytes(octets[alone:])]
    host = ".".join(_part(value, data.draw(st.sampled_from("dxXo"))) for value in values)
    six = [
        number,  # ::a.b.c.d
        0xFFFF << 32 | number,  # mapped
        0xFFFF << 48 | number,  # translated
        0x0064_FF9B << 96 | number,  # NAT64
        0x2002 << 112 | number << 80 | data.draw(st.integers(0, 2**80 - 1)),  # 6to4
        0x2001 << 112 | data.draw(st.integers(0, 2**64 - 1)) << 32 | number ^ 0xFFFF_FFFF,
    ]
    hosts = [host, host + ".", host.translate(_WIDE)]
    hosts += [f"[{IPv6Address(value)}]" for value in six]
    hosts += [f"[{IPv6Address(six[0]).exploded}]"]
    for each in hosts:
        with pytest.raises(BadWorkerURL, match="blocked"):
            normalise_url(f"http://{each}")
