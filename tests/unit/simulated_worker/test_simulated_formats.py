"""Small formats of the worker: msgpack, multipart, skimmed JSON, fields, tensors."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulated_worker.fields import Field, as_validation_text, check
from simulated_worker.messages import Refusal
from simulated_worker.msgpack import Blob, MsgpackError, decode, encode, plan
from simulated_worker.multipart import Form, _Parser
from simulated_worker.skim import LONGEST, SkimError, Skimmer
from simulated_worker.tensors import tensor

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(VALUES)
def test_msgpack_goes_there_and_back(value: Any) -> None:
    assert decode(encode(value)) == value


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (127, "7f"),
        (128, "cc80"),
        (-32, "e0"),
        (-33, "d0df"),
        (65536, "ce00010000"),
        (1.5, "cb3ff8000000000000"),
        ("é", "a2c3a9"),
        (b"\x01", "c40101"),
        ([None, True], "92c0c3"),
        ({"a": 1}, "81a16101"),
        ("x" * 32, "d920" + "78" * 32),
        (list(range(16)), "dc0010" + "".join(f"{i:02x}" for i in range(16))),
    ],
)
def test_msgpack_as_others_write_it(value: Any, encoded: str) -> None:
    assert encode(value).hex() == encoded


def test_blobs_are_made_when_they_are_sent() -> None:
    made: list[int] = []

    def pieces() -> list[bytes]:
        made.append(1)
        return [b"ab", b"c"]

    encoded = plan({"x": [Blob(3, pieces), 1]})
    assert not made
    data = b"".join(encoded.pieces())
    assert len(data) == encoded.size
    assert decode(data) == {"x": [b"abc", 1]}


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\xa5ab", b"\x01\x01", b"\xdd\xff\xff\xff\xff"])
def test_broken_msgpack(data: bytes) -> None:
    with pytest.raises(MsgpackError):
        decode(data)


def test_msgpack_refuses_what_it_cannot_say() -> None:
    with pytest.raises(MsgpackError):
        encode(object())
    with pytest.raises(MsgpackError):
        encode(2**64)


def parse(data: bytes, step: int) -> Form:
    form = Form()
    parser = _Parser(b"BB", form)
    for at in range(0, len(data), step):
        parser.feed(data[at : at + step])
    parser.close()
    return form


BODY = (
    b'--BB\r\nContent-Disposition: form-data; name="a"\r\n\r\none\r\n'
    b'--BB\r\nContent-Disposition: form-data; name="a"\r\n\r\n\r\n--B\r\n'
    b'--BB\r\ncontent-disposition: form-data; name="f"; filename="x.png"\r\n'
    b"Content-Type: image/png\r\n\r\n" + bytes(range(256)) + b"\r\n--BB--\r\n"
)


@pytest.mark.parametrize("step", [1, 2, 3, 7, 64, 10_000])
def test_forms_in_pieces_of_any_size(step: int) -> None:
    form = parse(BODY, step)
    assert form.many == {"a": ["one", "\r\n--B"]}
    (upload,) = form.files
    assert (upload.name, upload.filename, upload.content_type) == ("f", "x.png", "image/png")
    assert upload.size == 256
    assert upload.sha256 == hashlib.sha256(bytes(range(256))).hexdigest()


@pytest.mark.parametrize("data", [BODY[:-6], b"hello", b"--BB\r\nX: y\r\n\r\n\r\n--BB--"])
def test_broken_forms(data: bytes) -> None:
    with pytest.raises(Refusal):
        parse(data, 10)


@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda v: st.lists(v) | st.dictionaries(st.text(), v)
    ),
    st.integers(1, 50),
)
def test_short_json_is_skimmed_as_it_is(value: Any, step: int) -> None:
    data = json.dumps(value).encode()
    skimmer = Skimmer()
    for at in range(0, len(data), step):
        skimmer.feed(data[at : at + step])
    assert skimmer.value() == value


@pytest.mark.parametrize("step", [1, 1000, 1_000_000])
def test_long_strings_are_hashed(step: int) -> None:
    long = "x" * LONGEST + '\\"'
    data = json.dumps({"a": [long, "b"]}).encode()
    skimmer = Skimmer()
    for at in range(0, len(data), step):
        skimmer.feed(data[at : at + step])
    raw = json.dumps(long).encode()[1:-1]
    digest = hashlib.sha256(raw).hexdigest()
    assert skimmer.value() == {"a": [f"sha256:{digest}:{len(raw)}", "b"]}


@pytest.mark.parametrize("data", [b'{"a": "b', b"{", b"", b'{"a" "b"}'])
def test_broken_json_is_refused(data: bytes) -> None:
    skimmer = Skimmer()
    skimmer.feed(data)
    with pytest.raises(SkimError):
        skimmer.value()


@pytest.mark.parametrize(
    ("kind", "given", "value"),
    [
        ("int", "5", 5),
        ("int", 5.0, 5),
        ("int", True, 1),
        ("float", "1.5", 1.5),
        ("float", 2, 2.0),
        ("bool", "yes", True),
        ("bool", 0, False),
        ("ints", [1, "2"], [1, 2]),
        ("strs", "x", "x"),
        ("paths", ["x", None], ["x", None]),
        ("int", None, None),
    ],
)
def test_fields_are_coerced(kind: str, given: Any, value: Any) -> None:
    assert check({"f": given}, (Field("f", kind),)) == ({"f": value}, [])


@pytest.mark.parametrize(
    ("kind", "given", "errors"),
    [
        ("str", 5, ["string_type"]),
        ("int", "x", ["int_parsing"]),
        ("int", 1.5, ["int_from_float"]),
        ("int", [], ["int_type"]),
        ("float", "x", ["float_parsing"]),
        ("bool", "x", ["bool_parsing"]),
        ("object", [], ["dict_type"]),
        ("list", {}, ["list_type"]),
        ("ints", "x", ["int_parsing", "list_type"]),
    ],
)
def test_fields_are_refused(kind: str, given: Any, errors: list[str]) -> None:
    assert [error["type"] for error in check({"f": given}, (Field("f", kind),))[1]] == errors


def test_defaults_and_unknown_fields() -> None:
    values, errors = check({"x": 1}, (Field("f", "int", 3), Field("g", "str", required=True)))
    assert values == {"f": 3, "g": None}
    assert errors == [
        {"type": "missing", "loc": ["body", "g"], "msg": "Field required", "input": None}
    ]
    text = as_validation_text("M", errors, {})
    assert text == (
        "1 validation error for M\ng\n"
        "  Field required [type=missing, input_value={}, input_type=dict]\n"
        "    For further information visit https://errors.pydantic.dev/2.14/v/missing"
    )


@pytest.mark.parametrize(
    ("shape", "dtype", "size"),
    [((3, 5), "float32", 60), ((), "bfloat16", 2), ((70_000,), "float32", 280_000)],
)
def test_tensors_are_as_large_as_they_say(shape: tuple[int, ...], dtype: str, size: int) -> None:
    made = tensor("seed", shape, dtype)
    data = b"".join(made["data"].pieces())
    assert len(data) == made["data"].size
    header = int.from_bytes(data[:8], "little")
    assert header % 8 == 0
    assert json.loads(data[8 : 8 + header])["t"]["data_offsets"] == [0, size]
    assert len(data) == 8 + header + size
    assert data == b"".join(tensor("seed", shape, dtype)["data"].pieces())
    if size > 2:
        assert data != b"".join(tensor("other", shape, dtype)["data"].pieces())
