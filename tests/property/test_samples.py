"""Rollout samples as they pass in a split answer, cut into any pieces."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgpack  # type: ignore[import-untyped]
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from router.relay.connection import Invalid
from router.relay.samples import Samples, array, integer

_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.text(max_size=40),
    st.sampled_from(["seed", "seeds", "data"]),
    st.binary(max_size=300),
    st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=20)),
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=17), st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=6,
)
_SEEDS = st.one_of(st.integers(-200, 200), st.integers(-(2**63), 2**63 - 1))
_REST = st.dictionaries(st.text(max_size=5).filter("seed".__ne__), _VALUES, max_size=3)


def packed(value: object) -> bytes:
    data: bytes = msgpack.packb(value)
    return data


def passed(samples: Samples, data: bytes, cuts: list[int]) -> bytes:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    out = b"".join(samples.take(data[begin:end]) for begin, end in pairwise(edges))
    samples.over()
    return out


@given(
    rests=st.lists(_REST, min_size=1, max_size=18),
    seed=_SEEDS,
    shown=_SEEDS,
    place=st.integers(0, 5),
    cuts=st.lists(st.integers(0, 10_000), max_size=30),
)
def test_only_seeds_change(
    rests: list[dict[str, Any]], seed: int, shown: int, place: int, cuts: list[int]
) -> None:
    def group(value: int) -> list[dict[str, Any]]:
        members = [list(rest.items()) for rest in rests]
        return [dict([*some[:place], ("seed", value), *some[place:]]) for some in members]

    out = passed(Samples(len(rests), seed, shown), packed(group(seed)), cuts)
    assert array(len(rests)) + out == packed(group(shown))


@given(value=_SEEDS)
@example(-33)
@example(2**63 - 1)
def test_integers_are_as_short_as_those_of_workers(value: int) -> None:
    assert integer(value) == packed(value)


@pytest.mark.parametrize("count", [0, 15, 16, 65535, 65536])
def test_heads_of_arrays(count: int) -> None:
    assert packed([None] * count).startswith(array(count))


GOOD = packed([{"seed": 7, "data": b"abc"}, {"seed": 7}])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        GOOD[:1],
        GOOD[:-1],
        GOOD[:-3],
        GOOD + b"\xc0",
        packed({"seed": 7}),
        packed([{"seed": 7}]),
        packed([{"seed": 7}] * 3),
        packed([7, {"seed": 7}]),
        packed([[7], {"seed": 7}]),
        packed([{"seed": 7}, {"seed": 8}]),
        packed([{"seed": 7}, {"seed": None}]),
        packed([{"seed": 7}, {"seed": [7]}]),
        packed([{"seed": 7}, {"data": {"seed": 7}}]),
        packed([{}, {"seed": 7}]),
        packed([{"seed": 7}, {}]),
        b"\x92\x81\xa4seed\xcc\x07\x81\xa4seed\x07",  # longer than a worker writes it
        b"\x92\xc1",
        b"\x92\x81\xa4seed\x07\x82\xa4seed\x07\xa1x" + b"\x91" * 100,
    ],
)
@pytest.mark.parametrize("step", [1, 1000])
def test_what_is_no_list_of_samples_is_refused(data: bytes, step: int) -> None:
    with pytest.raises(Invalid):
        passed(Samples(2, 7, 5), data, list(range(0, len(data), step)))


def test_good_is_good() -> None:
    assert (
        passed(Samples(2, 7, 5), GOOD, []) == packed([{"seed": 5, "data": b"abc"}, {"seed": 5}])[1:]
    )
