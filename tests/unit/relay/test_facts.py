"""Facts from the beginning of request bodies: what is found, when, and what is not mistaken."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from router.relay import facts
from router.relay.facts import FieldReader, from_json, is_form, is_json, leading_fields, reader

JSON = [(b"content-type", b"application/json")]
FORM = [(b"Content-Type", b'multipart/form-data; charset=utf-8; boundary="a b"')]


def fed(headers: list[tuple[bytes, bytes]], *pieces: bytes) -> tuple[dict[str, object], list[bool]]:
    """The fields found, and what `done` said after each piece."""
    held = bytearray()
    made = reader(headers, held)
    assert made is not None
    said = []
    for piece in pieces:
        held += piece
        said.append(made.done())
    return dict(made.fields), said


# JSON.


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "m", "rest": [',
        b' \r\n\t{ "model" : "m" , "prompt": "x',
        b'{"prompt": "a \\" } \\\\", "x": -1.5e3, "model":"m",',
        b'{"a": {"model": "nested", "b": ["}", "\\"]"]}, "model": "m", ',
        b'{"a": [{"model": "nested"}], "b": null, "c": true, "model": "m"}',
        b'{"mod\\u0065l": "\\u006d"',
        '{"präfix": "ü", "model": "m"'.encode(),
        b'{"a": "\\\\", "model": "m"',
        b'{"a": "\\\\\\"model\\": \\"x", "model": "m"',
    ],
)
def test_a_member_of_the_outermost_object_is_found(body: bytes) -> None:
    assert fed(JSON, body) == ({"model": "m"}, [True])
    # Byte by byte as well, and as soon as it stands whole.
    found, said = fed(JSON, *(body[i : i + 1] for i in range(len(body))))
    assert found == {"model": "m"}
    first = said.index(True)
    assert not fed(JSON, body[:first])[0]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"   ",
        b'{"model": "cut',
        b'{"model": "cut\\',
        b'{"model":',
        b'{"prompt": "\\"model\\": \\"m\\"", ',
        b'{"prompt": {"model": "m"}, ',
        b'{"prompt": [{"model": "m"}',
        b'{"prompt": "model", "m": "x", ',
        b'{"x": "model", "y": ["model", "m"],',
    ],
)
def test_nothing_else_is_taken_for_it(body: bytes) -> None:
    assert fed(JSON, body) == ({}, [False])


@pytest.mark.parametrize(
    "body",
    [
        b"[",
        b"hello",
        b'"model": "m"',
        b'["model", "m"]',
        b'{"model" "m"',
        b'{model: "m"}',
        b"{'model': 'm'}",
        b'{"a": 1 "model": "m"}',
        b'{"a": 1; "model": "m"}',
        b'{"a": 1}, "model": "m"',
        b'{"\\x": 1, "model": "m"}',
        b'{"model": "\x01"}',
        b'{"model": nonsense}',
        b"\xff\xfe{",
    ],
)
def test_what_is_not_json_says_nothing(body: bytes) -> None:
    assert fed(JSON, body) == ({}, [True])


@pytest.mark.parametrize(("value", "found"), [("1.5", 1.5), ("null", None), ("true", True)])
def test_other_scalars_keep_their_type(value: str, found: object) -> None:
    assert fed(JSON, b'{"model": %s,' % value.encode()) == ({"model": found}, [True])
    assert fed(JSON, b'{"model": %s' % value.encode()) == ({}, [False])


def test_of_a_json_body_only_the_model_is_waited_for() -> None:
    # What decides how long a generation takes is read if it has come by then, on either side.
    begin = b'{"size": "512x512", "model": "m", "num_inference_steps": 4, "n"'
    found = {"size": "512x512", "model": "m", "num_inference_steps": 4}
    assert fed(JSON, begin) == (found, [True])
    assert fed(JSON, begin[:20], begin[20:]) == (found, [False, True])
    assert fed(JSON, b'{"size": "512x512", "n": 2, "x": "') == (
        {"size": "512x512", "n": 2},
        [False],
    )


def test_a_nested_value_is_no_fact() -> None:
    assert fed(JSON, b'{"model": {"model": "m"}, "x": 1') == ({}, [True])
    assert from_json(b'{"model": ["m"]}') == {}


def test_a_scan_is_short_whatever_is_sent() -> None:
    size = 1024 * 1024
    bodies = [
        b'{"a": ' + b"[" * size,
        b'{"a": ' + b"[]," * (size // 3),
        b'{"a": [' + b'"",' * (size // 3),
        b"{" + b'"a":1,' * (size // 6),
        b'{"a": "' + b"\\n" * (size // 2),
        b'{"a": "' + b"x" * size,
        b"{" + b" " * size,
    ]
    for body in bodies:
        begun = time.process_time()
        assert not leading_fields(bytearray(body), frozenset({"model"}))
        assert time.process_time() - begun < 0.5, body[:20]
    # Nor long in all if the body comes in small pieces: no byte is looked at again and again.
    held = bytearray(b'{"a": "')
    made = reader(JSON, held)
    assert made is not None
    begun = time.process_time()
    for _ in range(size // 64):
        held += b"\\nxxxxxx" * 8
        assert not made.done()
    assert time.process_time() - begun < 2


def test_other_names_can_be_asked_for() -> None:
    body = bytearray(b'{"id": "x", "model": "m", "n": 3, "data": [')
    assert leading_fields(body, frozenset({"id", "n", "none"})) == {"id": "x", "n": 3}


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
NAMES = st.sampled_from(["model", "prompt", "size", "n"])
OBJECTS = st.dictionaries(st.text() | NAMES, JSON_VALUES, max_size=6)


@given(OBJECTS, st.booleans(), st.sampled_from([None, 1]), st.integers(1, 7))
@example({"model": "m"}, True, None, 1)
@example({"model": "m", "size": "1x1", "n": 2}, True, None, 1)
def test_a_whole_object_gives_what_a_parser_gives(
    content: dict[str, object], ascii_only: bool, indent: int | None, step: int
) -> None:
    body = json.dumps(content, ensure_ascii=ascii_only, indent=indent).encode(
        "utf-8", "surrogatepass"
    )
    expected = {
        name: value
        for name, value in content.items()
        if name in facts.WANTED and not isinstance(value, list | dict)
    }
    pieces = [body[at : at + step] for at in range(0, len(body), step)]
    found, said = fed(JSON, *pieces)
    assert found == expected
    assert said[-1] or "model" not in found
    assert said == sorted(said), "once done, always done"
    assert from_json(body) == expected


@given(st.binary(max_size=200), st.sampled_from([JSON, FORM]))
def test_no_body_at_all_makes_it_fail(body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    begin = b"" if headers is JSON else b'--a b\r\nContent-Disposition: form-data; name="x"\r\n\r\n'
    whole, _ = fed(headers, begin + body)
    piecemeal, _ = fed(headers, begin, *(body[i : i + 1] for i in range(len(body))))
    assert whole == piecemeal


# Forms.


def part(headers: bytes, content: bytes) -> bytes:
    return b"--a b\r\n" + headers + b"\r\n\r\n" + content + b"\r\n"


def named(name: bytes, content: bytes) -> bytes:
    return part(b'Content-Disposition: form-data; name="%s"' % name, content)


FILE = (
    b'Content-Disposition: form-data; name="image"; filename="model.png"\r\nContent-Type: image/png'
)


@pytest.mark.parametrize(
    "body",
    [
        named(b"model", b"m"),
        named(b"prompt", b"--a\r\nmodel=x") + named(b"model", b"m"),
        b"preamble\r\n" + named(b"model", b"m"),
        named(b"empty", b"") + named(b"model", b"m"),
        part(b"content-DISPOSITION:form-data;NAME=model", b"m"),
        part(b'X-A: b\r\nContent-Disposition: form-data; name="model"\r\nX-C: d', b"m"),
        part(b'Content-Disposition: form-data; x="; filename=y"; name="model"', b"m"),
        part(b'Content-Disposition: form-data; name="mod\\el"', b"m"),
    ],
)
def test_a_leading_field_is_found(body: bytes) -> None:
    # As soon as it stands whole; others may still follow, as long as no file begins.
    body += b"--a b"
    assert fed(FORM, body[:-1]) == ({}, [False])
    for end in (b"--", b"\r\n" + FILE + b"\r\n\r\n"):
        assert fed(FORM, body, end) == ({"model": "m"}, [False, True])
        whole = body + end
        found, said = fed(FORM, *(whole[i : i + 1] for i in range(len(whole))))
        assert (found, said.index(True)) == ({"model": "m"}, len(whole) - 1)


def test_a_form_is_read_no_further_than_to_the_last_wanted_field() -> None:
    wanted = {name: str(place) for place, name in enumerate(sorted(facts.WANTED))}
    body = b"".join(named(name.encode(), value.encode()) for name, value in wanted.items())
    assert fed(FORM, body, b"--a b\r\n", named(b"prompt", b"p")) == (wanted, [False, True, True])


def test_reading_ends_where_the_first_file_begins() -> None:
    before = named(b"prompt", b"p")
    begun = before + b"--a b\r\n" + FILE
    assert fed(FORM, begun) == ({}, [False])
    assert fed(FORM, begun, b"\r\n\r\n") == ({}, [False, True])
    # A field behind a file is not waited for, and the inside of a file is not read.
    after = begun + b"\r\n\r\n" + named(b"model", b"m")
    assert fed(FORM, after) == ({}, [True])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--a",
        b"--a b\r\n",
        b'--a b\r\nContent-Disposition: form-data; name="model"\r\n\r\nunfinished',
        named(b"model", b"m")[:-2],
        named(b"not", b'Content-Disposition: form-data; name="model"\r\n\r\nm'),
    ],
)
def test_what_is_not_whole_is_no_field(body: bytes) -> None:
    assert fed(FORM, body) == ({}, [False])


def test_the_end_of_a_form_is_an_end() -> None:
    assert fed(FORM, named(b"x", b"y") + b"--a b--\r\n" + named(b"model", b"m")) == ({}, [True])


def test_the_first_of_several_fields_counts() -> None:
    body = named(b"model", b"first") + named(b"model", b"second") + b"--a b--"
    assert fed(FORM, body)[0] == {"model": "first"}


def test_a_longer_boundary_within_a_file_is_content() -> None:
    """A file that holds another form must not choose the model."""
    inner = named(b"model", b"theirs").replace(b"--a b", b"--a bc")
    file = part(FILE, b"\r\n" + inner + b"--a bc--")
    body = inner + file + named(b"model", b"ours") + b"--a b--"
    for step in (1, 7, len(body)):
        held = bytearray()
        made = reader(FORM, held, on=True)
        assert made is not None
        for at in range(0, len(body), step):
            held += body[at : at + step]
            if made.done():
                break
        assert made.fields == {"model": "ours"}


@given(
    st.dictionaries(st.sampled_from(["model", "prompt", "n", "mod", "model2"]), st.text()),
    st.integers(1, 9),
)
def test_forms_give_their_fields(fields: dict[str, str], step: int) -> None:
    body = b"".join(named(name.encode(), value.encode()) for name, value in fields.items())
    body += b"--a b--\r\n"
    pieces = [body[at : at + step] for at in range(0, len(body), step)]
    if any("\r\n--a b" in f"\r\n{value}" for value in fields.values()):
        return  # not a boundary then
    found, said = fed(FORM, *pieces)
    assert found == {name: value for name, value in fields.items() if name in ("model", "n")}
    assert said[-1]


# Which bodies are read at all.


@pytest.mark.parametrize(
    ("kind", "json_like", "form"),
    [
        (None, True, False),
        (b"application/json", True, False),
        (b"Application/JSON ; charset=utf-8", True, False),
        (b"application/problem+json", True, False),
        (b"text/plain", True, False),
        (b"application/x-www-form-urlencoded", True, False),
        (b"application/octet-stream", False, False),
        (b"application/msgpack", False, False),
        (b"image/png", False, False),
        (b"multipart/form-data; boundary=x", False, True),
        (b"Multipart/Form-Data; boundary=x", False, True),
        (b"multipart/mixed; boundary=x", False, False),
    ],
)
def test_kinds_of_bodies(kind: bytes | None, json_like: bool, form: bool) -> None:
    headers = [(b"content-type", kind)] if kind is not None else []
    assert (is_json(headers), is_form(headers)) == (json_like, form)
    assert isinstance(reader(headers, bytearray()), FieldReader) is (json_like or form)


@pytest.mark.parametrize(
    "kind", [b"multipart/form-data", b"multipart/form-data; boundary=", b"multipart/form-data; x=y"]
)
def test_a_form_without_a_boundary_is_not_read(kind: bytes) -> None:
    assert reader([(b"content-type", kind)], bytearray()) is None


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'"model"', b"[" * 100_000, b"\xff"])
def test_a_whole_body_that_is_no_object_says_nothing(body: bytes) -> None:
    assert from_json(body) == {}
