"""Settings from flags over a YAML file over defaults, with the mistakes of all told at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

import attrs

from ..errors import Problem, SettingsError
from .flags import Flags
from .structure import at, key_name, try_structure
from .yamlfile import read_yaml


class Settings(attrs.AttrsInstance, Protocol):
    """A settings class: all fields made by `setting()`, all with defaults."""

    def problems(self) -> Iterator[Problem]:
        """What no single field can tell; paths are field names."""
        ...


S = TypeVar("S", bound=Settings)

Check = Callable[[S], Iterable[Problem]]
Step = Callable[[S], tuple[S, Sequence[Problem]]]


def load(
    cls: type[S], flags: Flags, *, checks: Sequence[Check[S]] = (), steps: Sequence[Step[S]] = ()
) -> S:
    """Make the settings, or raise SettingsError with every mistake of flags and file.

    `checks` are further tests of the settings, beside their own `problems()`; the paths of what
    they find are field names (`worker_urls[1]`), which become the flag or the file's key. `steps`
    complete the settings, as from another file; the paths of their problems are left as they are.
    """
    problems = list(flags.problems)
    values: dict[str, object] = {}
    origin: dict[str, str] = {}

    if flags.config is not None:
        data, wrong = read_yaml(flags.config)
        problems += wrong
        values, wrong = _fields(cls, data)
        problems += [at(flags.config, problem) for problem in wrong]
        origin = dict.fromkeys(values, flags.config)

    given, wrong = _fields(cls, flags.values)
    problems += [_at_flag(problem) for problem in wrong]
    values.update(given)
    origin.update(dict.fromkeys(given, ""))

    settings = cls(**values)
    for check in (cls.problems, *checks):
        for problem in check(settings):
            source = origin.get(_field_of(problem), "")
            problems.append(at(source, problem) if source else _at_flag(problem))
    for step in steps:
        settings, more = step(settings)
        problems += more
    if problems:
        raise SettingsError(problems)
    return settings


def _fields(cls: type[S], data: object) -> tuple[dict[str, object], list[Problem]]:
    """The values of the good fields in `data`, and the problems of the others.

    Since every field has a default, what is left after the bad ones are taken out is good.
    """
    made, problems = try_structure(data, cls)
    if made is None and isinstance(data, dict):
        bad = {_field_of(problem) for problem in problems}
        data = {key: item for key, item in data.items() if str(key_name(key)) not in bad}
        names = {attribute.name for attribute in attrs.fields(cls)}
        data = {key: item for key, item in data.items() if key_name(key) in names}
        made, _ = try_structure(data, cls)
    if made is None or not isinstance(data, dict):
        return {}, problems
    return {str(key_name(key)): getattr(made, str(key_name(key))) for key in data}, problems


def _field_of(problem: Problem) -> str:
    return re.split(r"[.\[]", problem.path, maxsplit=1)[0]


def _at_flag(problem: Problem) -> Problem:
    # Only names of fields stand in these paths, and indices: `--worker-urls[1]`.
    return Problem("--" + problem.path.replace("_", "-"), problem.message)
