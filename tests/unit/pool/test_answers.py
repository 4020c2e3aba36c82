"""What a worker says, for people."""

from __future__ import annotations

from typing import Any

import pytest

from router.pool.weights.answers import words

FORM = {"detail": [{"loc": ["body", "a"], "msg": "Field required"}, {"msg": "x"}]}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"success": False, "message": "no such path"}, "no such path"),
        ({"detail": "no such LoRA"}, "no such LoRA"),
        (FORM, "Field required; x"),
        ({"detail": ["?"]}, "{'detail': ['?']}"),
        ("Internal Server Error", "Internal Server Error"),
        ({}, "{}"),
    ],
)
def test_words(body: Any, said: str) -> None:
    assert words(body) == said
