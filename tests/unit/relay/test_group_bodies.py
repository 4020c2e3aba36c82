"""What a group of samples is, and the bodies of its parts."""

from __future__ import annotations

import json

import pytest

from router.relay.body import Body
from router.relay.split import CannotSplit, Group, group_of


def group(content: bytes, *, exact: bool = False) -> Group | None:
    return group_of(Body(None, bytearray(content), complete=True), exact=exact)


def of(**fields: object) -> bytes:
    return json.dumps({"prompt": "p", **fields}).encode()


def test_only_two_numbers_change() -> None:
    text = (
        ' {\n"prompt": "a \\"seed\\": 1, \u00fc", "s\\u0065ed" :  -3\t,"x": [{"seed": 1}, null],'
        '"num_outputs_per_prompt":10, "y": 1e3 } \n'
    )
    found = group(text.encode())
    assert found is not None
    assert (found.count, found.seed) == (10, -3)
    expected = text.replace("-3\t", "4\t").replace(":10", ":2")
    assert found.body(7, 2).decode() == expected
    assert found.body(0, 10).decode() == text


@pytest.mark.parametrize(
    ("count", "parts", "sizes"),
    [(16, 8, [2] * 8), (7, 3, [3, 2, 2]), (2, 2, [1, 1]), (5, 1, [5])],
)
def test_sizes(count: int, parts: int, sizes: list[int]) -> None:
    found = group(of(seed=1, num_outputs_per_prompt=count))
    assert found is not None
    assert found.sizes(parts) == sizes
    assert found.most == count


@pytest.mark.parametrize(
    "fields",
    [
        {"seed": 1},
        {"seed": 1, "num_outputs_per_prompt": None},
        {"seed": 1, "num_outputs_per_prompt": 1},
        {"seed": 1, "num_outputs_per_prompt": 0},
        {"num_outputs_per_prompt": 1, "extra_sampling_params": {"x": 1}},
    ],
)
def test_one_sample_is_no_group(fields: dict[str, object]) -> None:
    assert group(of(**fields)) is None


TWO = {"seed": 1, "num_outputs_per_prompt": 2}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "one JSON object"),
        (b"[1]", "one JSON object"),
        (b"{", "one JSON object"),
        (b'{"seed": 1, }', "one JSON object"),
        (b'{"seed": 1 "x": 2}', "one JSON object"),
        (b'{"seed": 1} x', "one JSON object"),
        (b"{1: 1}", "one JSON object"),
        (b'{"seed": \xff}', "one JSON object"),
        (b'{"x": ' + b"[" * 100_000, "one JSON object"),
        (b'{"seed": 1, "seed": 2, "num_outputs_per_prompt": 2}', "seed twice"),
        (of(num_outputs_per_prompt=2), "seed"),
        (of(num_outputs_per_prompt=2, seed=None), "seed"),
        (of(num_outputs_per_prompt=2, seed=[1, 2]), "seed"),
        (of(num_outputs_per_prompt=2, seed=True), "seed"),
        (of(num_outputs_per_prompt=2, seed=1.0), "seed"),
        (of(num_outputs_per_prompt=2, seed=2**63 - 2), "seed"),
        (of(seed=1, num_outputs_per_prompt="2"), "num_outputs_per_prompt"),
        (of(seed=1, num_outputs_per_prompt=2.0), "num_outputs_per_prompt"),
        (of(seed=1, num_outputs_per_prompt=True), "num_outputs_per_prompt"),
        (of(seed=1, num_outputs_per_prompt=2**32), "num_outputs_per_prompt"),
        (of(**TWO, extra_sampling_params={"seed": 3}), "seed outside"),
        (of(extra_sampling_params={"num_outputs_per_prompt": 3}), "outside"),
        (of(**TWO, rollout_return_denoising_env=True), "rollout_return_denoising_env"),
    ],
)
def test_what_cannot_be_split_exactly_is_refused(content: bytes, why: str) -> None:
    with pytest.raises(CannotSplit, match=why) as caught:
        group(content)
    assert (caught.value.status, caught.value.code) == (400, "cannot_split")


@pytest.mark.parametrize(
    ("fields", "exact"),
    [
        ({}, False),
        ({"rollout_sde_type": "sde"}, False),
        ({"rollout_sde_type": "cps", "rollout": True}, False),
        ({"rollout_sde_type": "ode"}, True),
        ({"rollout": False}, True),
    ],
)
def test_noise_of_a_whole_request_is_not_split_unasked(
    fields: dict[str, object], exact: bool
) -> None:
    assert group(of(**TWO, **fields), exact=False) is not None
    if exact:
        assert group(of(**TWO, **fields), exact=True) is not None
    else:
        with pytest.raises(CannotSplit, match="any-noise"):
            group(of(**TWO, **fields), exact=True)


def test_a_body_beyond_the_limit_is_refused() -> None:
    with pytest.raises(CannotSplit, match="--peek-limit"):
        group_of(Body(9, bytearray(b"{"), complete=False))
