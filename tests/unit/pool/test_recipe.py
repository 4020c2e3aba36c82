"""What a worker must be sent to be current, by what it has; and what its answers mean."""

from __future__ import annotations

from typing import Any

import pytest
from attrs import evolve

from router.pool.weights import Meaning, Recipe, meaning, wraps
from router.pool.weights.answers import alike
from router.pool.weights.recipe import (
    DISK,
    FRESH,
    MERGE,
    SET_LORA,
    TENSOR,
    UNMERGE,
    Step,
    WeightState,
    step_of,
)

HAS_ALL = WeightState(base=9, loras=9)


def recipe(*calls: tuple[str, dict[str, Any]]) -> Recipe:
    """The recipe after these changes, numbered from 1."""
    made = Recipe()
    for version, (path, content) in enumerate(calls, 1):
        if path == TENSOR:
            made = made.then_opaque(version, full=content.get("full", False))
        else:
            made = made.then(step_of(path, "{}", content, version))
    return made


def numbers(made: Recipe, has: WeightState = FRESH) -> list[int]:
    """The versions of the steps that it is sent; 0: one that is of no version."""
    plan = made.plan(has, "start")
    assert plan.blocked is None
    return [step.version for step in plan.steps]


FULL: tuple[str, dict[str, Any]] = (DISK, {"model_path": "x"})


def part(*modules: str) -> tuple[str, dict[str, Any]]:
    return DISK, {"model_path": "x", "target_modules": list(modules)}


def lora(path: str, target: object = "all") -> tuple[str, dict[str, Any]]:
    return path, {"target": target}


def test_a_full_update_replaces_what_came_before() -> None:
    made = recipe(FULL, part("vae"), FULL, part("vae"), part("text"))
    assert numbers(made) == [3, 4, 5]
    assert numbers(made, WeightState(base=3)) == [4, 5]
    assert numbers(made, WeightState(base=4)) == [5]
    assert numbers(made, HAS_ALL) == []


def test_of_each_module_the_last_partial_update_counts() -> None:
    assert numbers(recipe(part("vae"), part("vae"))) == [2]
    assert numbers(recipe(part("vae"), part("text", "vae"), part("text"))) == [2, 3]
    # The weights of the start are the ground of these: where they are lost they come first.
    assert numbers(recipe(part("vae")), WeightState(base=None)) == [0, 1]
    assert numbers(recipe(FULL, part("vae")), WeightState(base=None)) == [1, 2]


def test_tensors_block_those_that_missed_them() -> None:
    made = recipe(FULL, (TENSOR, {}), part("vae"))
    assert made.plan(FRESH, "start").blocked
    assert made.plan(WeightState(base=None), "start").blocked
    assert numbers(made, WeightState(base=2)) == [3]
    assert numbers(made.then(step_of(DISK, "{}", {}, 4))) == [4]


def test_full_tensors_leave_nothing_of_what_came_before() -> None:
    made = recipe(FULL, part("vae"), lora(SET_LORA), (TENSOR, {"full": True}), part("text"))
    assert (made.opaque, [step.version for step in made.base]) == (4, [5])
    assert made.plan(FRESH, "start").blocked
    assert numbers(made, WeightState(base=4, loras=3)) == [5]
    assert numbers(made, WeightState(base=4)) == [5, 3]


def test_loras_of_each_target() -> None:
    made = recipe(lora(SET_LORA, "t"), lora(SET_LORA, "v"), lora(SET_LORA, "t"))
    assert numbers(made) == [2, 0, 0, 3]
    assert numbers(recipe(lora(SET_LORA, "t"), lora(SET_LORA))) == [2]
    assert numbers(recipe(lora(SET_LORA), lora(MERGE), lora(MERGE))) == [1, 3]
    assert numbers(recipe(lora(SET_LORA), lora(SET_LORA, ["t", "v"]))) == [1, *[0] * 4, 2]


def test_what_was_taken_out_is_not_put_in() -> None:
    made = recipe(lora(SET_LORA), lora(UNMERGE))
    assert numbers(made) == []
    assert numbers(made, WeightState(loras=1, wrapped=True)) == [0, 0, 1, 2]
    assert numbers(recipe(lora(SET_LORA), lora(UNMERGE), lora(MERGE))) == [1, 3]
    assert numbers(recipe(lora(UNMERGE))) == []
    # What merges nothing any more is not sent before there is something to merge.
    assert numbers(recipe(lora(SET_LORA, "t"), lora(MERGE), lora(SET_LORA, "t"))) == [3]


def test_an_unknown_lora_is_taken_out_first() -> None:
    steps = Recipe().plan(WeightState(loras=None, wrapped=True), "start").steps
    assert [(step.path, step.optional) for step in steps] == [(MERGE, True), (UNMERGE, True)]
    assert numbers(recipe(lora(SET_LORA)), WeightState(loras=None, wrapped=True)) == [0, 0, 1]
    assert numbers(recipe(lora(SET_LORA, "t")), WeightState(loras=None, wrapped=True)) == [0, 0, 1]


def test_wrapped_layers_cannot_be_updated() -> None:
    wrapped = WeightState(base=0, loras=0, wrapped=True)
    assert recipe(FULL).plan(wrapped, "start").blocked
    assert Recipe().plan(WeightState(base=None, wrapped=True), "start").blocked
    assert numbers(recipe(lora(SET_LORA)), wrapped) == [0, 0, 1]


def test_what_acts_is_taken_out_before_a_lora_is_set_again() -> None:
    """Of the same targets only: else a worker skips a call that equals its last one."""
    made = recipe(lora(SET_LORA), lora(MERGE), lora(SET_LORA, "t"))
    out = [(MERGE, ("t",), True), (UNMERGE, ("t",), True), (SET_LORA, ("t",), False)]
    steps = [(s.path, s.modules, s.optional) for s in made.plan(FRESH, "start").steps]
    assert steps == [(SET_LORA, ("all",), False), (MERGE, ("all",), False), *out]
    later = pushed(Recipe(), 1).then(step_of(SET_LORA, "{}", {"target": "t"}, 2))
    missed = later.plan(WeightState(loras=1, wrapped=True), "start").steps
    assert [(s.path, s.modules, s.optional) for s in missed] == out


@pytest.mark.parametrize(
    ("calls", "skips"),
    [
        ([], False),
        ([lora(SET_LORA)], False),
        ([lora(SET_LORA), lora(UNMERGE)], False),
        ([lora(SET_LORA, ["all", "all"])], False),
        ([lora(SET_LORA), lora(MERGE)], True),
        # A worker compares only the first of the targets.
        ([lora(SET_LORA, "t")], True),
        ([lora(SET_LORA), lora(SET_LORA, "v")], True),
        ([lora(SET_LORA), lora(UNMERGE, "v")], True),
        ([lora(SET_LORA, ["all", "t"])], True),
    ],
)
def test_when_a_worker_may_skip_a_lora(calls: list[Any], skips: bool) -> None:
    made = recipe(*calls)
    assert made.skips(SET_LORA) is skips
    assert not made.skips(UNMERGE)
    assert not made.skips(MERGE)


def pushed(made: Recipe, version: int) -> Recipe:
    """The recipe after a LoRA that came as tensors."""
    return made.then(step_of(TENSOR, "{}", {}, version))


def test_a_pushed_lora_blocks_those_that_missed_it() -> None:
    made = pushed(recipe(FULL, lora(SET_LORA, "t")), 3)
    assert not made.repeatable
    for has in (
        WeightState(1),
        WeightState(1, 2, wrapped=True),
        WeightState(1, None, wrapped=True),
    ):
        plan = made.plan(has, "start")
        assert plan.blocked
        assert not plan.steps
    has = WeightState(1, 3, wrapped=True)
    assert numbers(made, has) == []
    # Those that have it only need what came later. An unmerge alone would skip it.
    assert numbers(made.then(step_of(MERGE, "{}", {}, 4)), has) == [4]
    later = made.then(step_of(UNMERGE, "{}", {}, 4))
    assert [step.path for step in later.plan(has, "start").steps] == [MERGE, UNMERGE]
    for recipe_then in (made, later):
        assert recipe_then.skips(UNMERGE)
        assert recipe_then.skips(SET_LORA)
        assert not recipe_then.skips(MERGE)
    # Taken out, or replaced, it does not matter any more.
    assert numbers(later) == [1]
    for unsure in (evolve(has, loras=None), evolve(has, loras=2)):
        steps = [(step.path, step.optional) for step in later.plan(unsure, "start").steps]
        assert steps == [(MERGE, True), (UNMERGE, True)]
    assert numbers(later, evolve(has, doubt=True)) == [0, 0, 1]
    ink = later.then(step_of(SET_LORA, "{}", {"target": "t"}, 5))
    assert numbers(ink, evolve(has, loras=None))[-1] == 5
    assert later.repeatable
    assert numbers(made.then(step_of(SET_LORA, "{}", {}, 4))) == [1, 4]
    assert not later.then(step_of(MERGE, "{}", {}, 5)).repeatable


def test_who_lacks_a_pushed_lora_gets_the_weights_below_it() -> None:
    """For the next LoRA."""
    made = pushed(recipe(FULL, part("vae")), 3)
    for has, steps in ((FRESH, [1, 2]), (WeightState(1), [2]), (WeightState(None), [1, 2])):
        plan = made.plan(has, "start")
        assert [step.version for step in plan.steps] == steps
        assert plan.blocked


def test_a_full_update_leaves_no_pushed_lora() -> None:
    made = pushed(recipe(lora(SET_LORA)), 2).then(step_of(DISK, "{}", {}, 3))
    assert made.repeatable
    assert numbers(made) == [3]


def test_in_doubt_it_may_be_fresh() -> None:
    made = recipe(FULL, lora(SET_LORA))
    assert numbers(made, WeightState(2, 2, wrapped=True, doubt=True)) == [1, 0, 0, 2]
    has = WeightState(0, 1, wrapped=True, doubt=True)
    assert numbers(recipe(lora(SET_LORA)), has) == [0, 0, 1]
    assert numbers(Recipe(), WeightState(doubt=True)) == []
    assert made.plan(WeightState(0, 2, wrapped=True, doubt=True), "start").blocked


def test_without_a_path_of_its_own() -> None:
    assert Recipe().plan(WeightState(base=None), None).blocked
    assert recipe(FULL).plan(WeightState(base=None), None).blocked is None


@pytest.mark.parametrize(
    ("path", "status", "body", "sent", "means"),
    [
        (DISK, 200, {"success": True}, True, Meaning.APPLIED),
        (DISK, 200, None, True, Meaning.APPLIED),
        (DISK, 200, {"success": False}, True, Meaning.UNKNOWN),
        (DISK, 400, {"message": "not found"}, True, Meaning.UNCHANGED),
        (DISK, 400, {"message": "All modules rolled back"}, True, Meaning.UNKNOWN),
        (DISK, 400, {"message": "Failed to update module 'vae'"}, True, Meaning.UNKNOWN),
        (DISK, 422, {"detail": []}, True, Meaning.UNCHANGED),
        (DISK, 500, "oops", True, Meaning.UNKNOWN),
        (DISK, 504, {"error": "no answer"}, True, Meaning.UNKNOWN),
        (DISK, 502, {"error": "refused"}, False, Meaning.UNCHANGED),
        (TENSOR, 400, {"message": "bad"}, True, Meaning.UNKNOWN),
        (TENSOR, 502, {}, False, Meaning.UNCHANGED),
        (SET_LORA, 200, {"status": "ok"}, True, Meaning.APPLIED),
        (SET_LORA, 500, {"detail": "no such path"}, True, Meaning.REFUSED),
        (SET_LORA, 500, "oops", True, Meaning.UNKNOWN),
        (SET_LORA, 422, {"detail": []}, True, Meaning.UNCHANGED),
        (MERGE, 504, {"error": "x"}, True, Meaning.UNKNOWN),
    ],
)
def test_what_answers_mean(path: str, status: int, body: Any, sent: bool, means: Meaning) -> None:
    assert meaning(path, status, body, sent=sent) is means


@pytest.mark.parametrize(
    ("path", "status", "body", "wrapped"),
    [
        (SET_LORA, 500, {"detail": "Failed to set LoRA adapter: no such path"}, True),
        (SET_LORA, 400, {"detail": "no such path"}, True),
        (SET_LORA, 500, {"detail": "Failed to set LoRA adapter: Invalid target(s): ['x']"}, False),
        (SET_LORA, 422, {"detail": []}, False),
        (SET_LORA, 404, {"detail": "Not Found"}, False),
        (UNMERGE, 500, {"detail": "no such adapter"}, False),
        (DISK, 400, {"message": "no such path"}, False),
    ],
)
def test_which_refusals_leave_wrapped_layers(
    path: str, status: int, body: Any, wrapped: bool
) -> None:
    assert wraps(path, status, body) is wrapped


def test_refusals_that_say_the_same() -> None:
    one = alike(500, {"detail": "no adapter at 0x7f31 on rank 3"})
    assert one == alike(500, {"detail": "no adapter at 0x99 on rank 12"})
    assert one != alike(500, {"detail": "out of memory"})
    assert one != alike(400, {"detail": "no adapter at 0x7f31 on rank 3"})


def test_steps_name_what_they_are_about() -> None:
    assert step_of(DISK, "{}", {}).is_full
    assert step_of(DISK, "{}", {"target_modules": None}).is_full
    assert not step_of(DISK, "{}", {"target_modules": ["a"]}).is_full
    assert step_of(SET_LORA, "{}", {}).is_of_all
    assert step_of(SET_LORA, "{}", {"target": ["all", "t"]}).is_of_all
    assert Step(1, DISK, "{}", ("a",)).covers(Step(1, DISK, "{}", ("a",)))
