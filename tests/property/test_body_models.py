"""The model that is read off a body as it arrives is that of a parser of the whole body."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from hypothesis import assume, example, given
from hypothesis import strategies as st

from router.relay.facts import reader

JSON = [(b"content-type", b"application/json")]
FORM = [(b"content-type", b"multipart/form-data; boundary=Bd")]


def read(headers: list[tuple[bytes, bytes]], body: bytes, cuts: list[float]) -> object:
    """The model as it is found if the body comes in these pieces."""
    held = bytearray()
    made = reader(headers, held, on=True)
    assert made is not None
    places = sorted({0, len(body), *(int(cut * len(body)) for cut in cuts)})
    for start, end in pairwise(places):
        held += body[start:end]
        if made.done():
            break
    return made.fields.get("model")


CUTS = st.lists(st.floats(0, 1), max_size=30)
LONG = st.builds(lambda text, times: text * times, st.text(max_size=9), st.integers(1, 3000))
TEXTS = st.text(max_size=8) | LONG | st.sampled_from(['"model": "x"', "\\", '\\"', "{", "}]"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.just("model") | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=8,
)
NAMES = st.sampled_from(["model", "Model", "image", "prompt", "n"]) | st.text(max_size=5)


@st.composite
def objects(draw: st.DrawFn) -> bytes:
    """A JSON object with members in any order, names doubled and escaped in any way."""
    members = draw(st.lists(st.tuples(NAMES, VALUES), max_size=6))
    indent = draw(st.sampled_from([None, 1]))
    ascii_only = draw(st.booleans())
    shown = []
    for name, value in members:
        written = json.dumps(name, ensure_ascii=ascii_only)
        if draw(st.booleans()):
            written = '"' + "".join(f"\\u{ord(c):04x}" for c in name if ord(c) < 0x10000) + '"'
        shown.append(f"{written} : {json.dumps(value, indent=indent, ensure_ascii=ascii_only)}")
    return ("{" + ",\n".join(shown) + "}").encode("utf-8", "surrogatepass")


def first_model(body: bytes) -> object:
    """That of `json.loads`; of several the first, as the rest need not have come."""
    found: list[Any] = []

    def note(pairs: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
        found[:] = [pairs]
        return pairs

    json.loads(body, object_pairs_hook=note)
    (outermost,) = found
    values = [value for name, value in outermost if name == "model"]
    if not values or isinstance(values[0], list | dict):
        return None
    return values[0]


@given(objects(), CUTS)
@example(b'{"image": "' + b"x" * 100_000 + b'", "model": "m"}', [0.5])
@example(b'{"model": "a", "model": "b"}', [])
@example(b'{"a": [[1], {"b": 2}, []], "model": "m"}', [0.2])
@example(b'{"model": {"model": "a"}, "model": "b"}', [0.1, 0.6])
def test_any_pieces_of_an_object_give_the_same_model(body: bytes, cuts: list[float]) -> None:
    model = first_model(body)
    # A longer one counts as not found.
    assume(not isinstance(model, str) or len(json.dumps(model)) < 60_000)
    assert read(JSON, body, cuts) == model


CONTENTS = st.binary(max_size=40) | st.sampled_from(
    [
        b"",
        b"--B",
        b"\r\n",
        b"\r\n--B",
        b"--Bd",
        b"x" * 50_000,
        b'Content-Disposition: form-data; name="model"\r\n\r\nx\r\n',
    ]
)
PARTS = st.tuples(
    st.sampled_from([b"model", b"image", b"prompt", b"mask"]), st.booleans(), CONTENTS
).filter(lambda part: b"\r\n--Bd" not in b"\r\n" + part[2])


def form_of(parts: list[tuple[bytes, bool, bytes]]) -> bytes:
    body = b""
    for name, is_file, content in parts:
        file = b'; filename="model"\r\nContent-Type: image/png' if is_file else b""
        body += b'--Bd\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n' % (name, file)
        body += content + b"\r\n"
    return body + b"--Bd--\r\n"


@given(st.lists(PARTS, max_size=5), CUTS)
@example([(b"model", True, b"file"), (b"model", False, b"m")], [0.2, 0.3])
@example([(b"image", True, b"\r\n--B"), (b"model", False, b"")], [])
def test_any_pieces_of_a_form_give_the_same_model(
    parts: list[tuple[bytes, bool, bytes]], cuts: list[float]
) -> None:
    named = [c for name, is_file, c in parts if name == b"model" and not is_file]
    expected = named[0].decode("utf-8", "replace") if named else None
    assert read(FORM, form_of(parts), cuts) == expected
