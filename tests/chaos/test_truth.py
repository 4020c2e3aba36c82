"""The judge of the chaos: it must not let anything pass."""

from __future__ import annotations

from typing import Any

import pytest

from simulated_worker.pictures import expected_image
from tests.chaos.truth import PROMPT, SIDE, Change, Model, Paint, Seen, Wrong


def seen(version: int, paint: Paint, floor: int = 0) -> Seen:
    png = expected_image(
        paint.weights, PROMPT, 7, width=SIDE, height=SIDE, steps=5, lora=paint.lora
    )
    return Seen("r1", "w1", version, floor, 7, 5, png)


def answer(version: int | None, *statuses: int) -> dict[str, Any]:
    return {"weight_version": version, "results": [{"status_code": s} for s in statuses]}


@pytest.fixture
def model() -> Model:
    return Model("m", "base")


@pytest.fixture
def first(model: Model) -> Change:
    change = model.disk("first", "weights/1")
    model.answered(change, answer(1, 200, 500))
    return change


def test_images_of_the_weights_that_they_name_are_right(model: Model, first: Change) -> None:
    model.saw(seen(0, model.versions[0].paint))
    model.saw(seen(1, first.paint, floor=1))
    model.settle()
    assert (model.proven, model.acknowledged) == ({0: 1, 1: 1}, 1)


@pytest.mark.parametrize("version", [0, 1])
def test_other_pixels_are_wrong(model: Model, first: Change, version: int) -> None:
    other = {0: first.paint, 1: model.versions[0].paint}[version]
    with pytest.raises(Wrong, match="not the pixels"):
        model.saw(seen(version, other))
    half = Paint(first.paint.weights, "some lora")
    with pytest.raises(Wrong, match="no change that was ever sent"):
        model.saw(seen(1, half))


def test_older_weights_than_those_acknowledged_are_wrong(model: Model, first: Change) -> None:
    with pytest.raises(Wrong, match="stale"):
        model.saw(seen(0, model.versions[0].paint, floor=1))


def test_versions_that_are_told_later_are_proven_then(model: Model) -> None:
    change, other = model.disk("a", "weights/a"), model.disk("b", "weights/b")
    model.saw(seen(1, change.paint))
    assert not model.proven
    model.learn(1, "a")
    assert model.proven == {1: 1}
    model.saw(seen(2, change.paint))
    with pytest.raises(Wrong, match="not the pixels"):
        model.learn(2, other.label)


def test_versions_that_nobody_tells_of_must_be_lost_changes(model: Model) -> None:
    change = model.disk("a", "weights/a")
    model.saw(seen(1, change.paint))
    with pytest.raises(Wrong, match="never told of"):
        model.settle()
    change.lost = True
    model.settle()
    assert model.proven == {1: 1}


def test_a_version_is_one_change(model: Model, first: Change) -> None:
    model.disk("b", "weights/b")
    with pytest.raises(Wrong, match="is first and then b"):
        model.learn(1, "b")
    with pytest.raises(Wrong, match="never sent"):
        model.learn(2, "c")
    model.learn(1, "first")


def test_answers_of_changes(model: Model) -> None:
    change = model.disk("a", "/nonexistent/a")
    model.answered(change, answer(0, 400, 400))
    assert (model.acknowledged, list(model.versions), change.lost) == (0, [0], False)
    pending = model.lora("b", "loras/b")
    model.answered(pending, answer(None))
    assert pending.lost
    with pytest.raises(Wrong, match="no version"):
        model.answered(change, answer(None, 200))


def test_loras_change_what_an_image_shows(model: Model) -> None:
    paints = [
        model.versions[0].paint,
        model.lora("a", "loras/a").paint,
        model.lora("b", "loras/a", 0.5).paint,
        model.lora("c", "loras/c").paint,
    ]
    assert len(set(paints)) == 4
    assert model.bare("d").paint == paints[0]
