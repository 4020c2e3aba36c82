"""Structuring nested data strictly: every mistake, by its path, at once."""

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Annotated, Any

import attrs
import pytest
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st

from router.errors import Problem
from router.settings import RouterSettings
from router.settings.fields import setting
from router.settings.kinds import Many, Number, Text, Unfit, WholeNumber
from router.settings.launch_kinds import Pairs
from router.settings.sections import Section, Settings


class Backend(StrEnum):
    LOCAL = "local"
    SLURM = "slurm"


@frozen
class Launcher(Settings):
    model: str = setting(attrs.NOTHING)
    num_workers: Annotated[int, WholeNumber()] = setting(1)
    share: Annotated[float, Number()] = setting(1)
    backend: Backend = setting("local")
    env: Annotated[Mapping[str, str], Pairs(("HOME",), "is ours")] = setting({})
    gpus: Annotated[tuple[int, ...], Many(WholeNumber())] = setting(())
    extra_args: Annotated[tuple[str, ...], Many(Text())] = setting(())
    note: Annotated[str | None, Text(optional=True)] = setting(None)
    strict: bool = setting("off")

    def problems(self) -> Iterator[Problem]:
        if self.gpus and len(self.gpus) < self.num_workers:
            yield Problem("", "expected at least one GPU for each worker")


@frozen
class Plan(Settings):
    launchers: Annotated[tuple[Launcher, ...], Many(Section(Launcher))] = setting(attrs.NOTHING)
    launcher: Annotated[Launcher | None, Section(Launcher, optional=True)] = setting(None)


def problems(data: object, cls: type[Settings] = Plan) -> list[str]:
    with pytest.raises(Unfit) as caught:
        cls.of(data)
    return [str(problem) for problem in caught.value.problems]


def test_good_data() -> None:
    data = {
        "launchers": [
            {"model": "m", "num-workers": 2, "gpus": [0, 1], "backend": "slurm", "share": 1},
            {"model": "n", "env": {"A-B": "1"}, "extra_args": ["--x"], "note": None},
        ]
    }
    assert Plan.of(data) == Plan(
        (
            Launcher("m", num_workers=2, gpus=(0, 1), backend=Backend.SLURM),
            Launcher("n", env={"A-B": "1"}, extra_args=("--x",)),
        )
    )


def test_all_mistakes_at_once_by_their_paths() -> None:
    data = {
        "launchers": [
            {"model": "m", "num_workers": "two", "gpus": [0, True], "env": {"A": True, "B C": 2.5}},
            {"num_wrokers": 1, "strict": 3},
            "text",
        ],
        "launcher": {"model": 3, "extra_args": "abc", "backend": "slrm", "env": ["x"]},
        "lunchers": [],
    }
    assert sorted(problems(data)) == sorted(
        [
            "launchers[0].num_workers: expected a whole number, got 'two'",
            "launchers[0].gpus[1]: expected a whole number, got true",
            "launchers[0].env.A: expected text, got true; put the value in quotes",
            "launchers[0].env['B C']: expected text, got 2.5; put the value in quotes",
            "launchers[1].model: is required",
            "launchers[1].strict: expected true or false, got 3",
            "launchers[1].num_wrokers: unknown key (did you mean num_workers?)",
            "launchers[2]: expected a mapping, got 'text'",
            "launcher.model: expected text, got 3",
            "launcher.extra_args: expected a list, got 'abc'",
            "launcher.backend: expected local or slurm, got 'slrm' (did you mean slurm?)",
            "launcher.env: expected a mapping, got a list",
            "lunchers: unknown key (did you mean launchers?)",
        ]
    )


def test_the_whole_of_it_may_be_wrong() -> None:
    assert problems([]) == ["expected a mapping, got a list"]
    assert problems(None) == ["expected a mapping, got nothing"]
    assert problems({"launchers": {"model": "m"}}) == [
        "launchers: expected a list, got a mapping",
    ]


def test_keys_that_are_no_names() -> None:
    assert problems({"launchers": [], 1: 2, "a.b\n": 4}) == [
        "1: unknown key",
        "['a.b\\n']: unknown key",
    ]


def test_a_key_in_both_spellings_is_a_mistake() -> None:
    message = "is given twice, once with '-' and once with '_'"
    both = {"model": "m", "num-workers": 1, "num_workers": 2}
    assert problems({"launchers": [both]}) == [f"launchers[0].num_workers: {message}"]
    assert problems({"launchers": [{**both, "share": "x"}]}) == [
        "launchers[0].share: expected a number, got 'x'",
        f"launchers[0].num_workers: {message}",
    ]


def test_a_class_may_check_itself() -> None:
    data = {"launchers": [{"model": "m", "num_workers": 2, "gpus": [0]}]}
    assert problems(data) == ["launchers[0]: expected at least one GPU for each worker"]


def test_items_of_a_list_setting_have_an_index() -> None:
    assert problems({"worker_urls": ["http://a", 3, ""]}, RouterSettings) == [
        "worker_urls[1]: expected text, got 3",
        "worker_urls[2]: expected text, got ''",
    ]
    assert problems({"worker_urls": "http://a"}, RouterSettings) == [
        "worker_urls: expected a list, got 'http://a'"
    ]


values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    st.dictionaries(
        st.sampled_from([a.name for a in attrs.fields(RouterSettings)]), values, max_size=4
    )
)
def test_any_data_gives_settings_or_problems(data: dict[str, object]) -> None:
    paths: list[str] = []
    try:
        made: Any = RouterSettings.of(data)
    except Unfit as unfit:
        paths = [problem.path for problem in unfit.problems]
    else:
        assert attrs.evolve(made) == made  # good enough for its own converters
    assert {path.split("[")[0].split(".")[0] for path in paths} <= set(data)
