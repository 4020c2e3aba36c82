"""Makes settings from flags over a YAML file over defaults, and reports all mistakes at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from ..errors import Problem, SettingsError
from .flags import Flags
from .kinds import at
from .sections import Settings

S = TypeVar("S", bound=Settings)

Check = Callable[[S], Iterable[Problem]]
Step = Callable[[S], tuple[S, Sequence[Problem]]]


def load(
    cls: type[S], flags: Flags, *, checks: Sequence[Check[S]] = (), steps: Sequence[Step[S]] = ()
) -> S:
    """Make the settings, or raise SettingsError with every mistake in flags and file.

    `checks` are further tests of the settings, besides their own `problems()`. The paths of their
    problems are field names (`worker_urls[1]`), which become flags or keys of the file. `steps`
    complete the settings, for example from another file; the paths of their problems stay as they
    are.
    """
    problems = list(flags.problems)
    from_file: dict[str, Any] = {}
    if flags.config is not None:
        from .yamlfile import read_yaml  # late: most starts read no file

        data, wrong = read_yaml(flags.config)
        problems += wrong
        from_file, wrong = cls.read(data)
        problems += [at(flags.config, problem) for problem in wrong]
    given, wrong = cls.read(flags.values)
    problems += [_at_flag(problem) for problem in wrong]

    settings = cls(**(from_file | given))
    for check in (cls.problems, *checks):
        for problem in check(settings):
            name = re.split(r"[.\[]", problem.path, maxsplit=1)[0]
            of_file = name in from_file and name not in given
            problems.append(at(flags.config or "", problem) if of_file else _at_flag(problem))
    for step in steps:
        settings, more = step(settings)
        problems += more
    if problems:
        raise SettingsError(problems)
    return settings


def _at_flag(problem: Problem) -> Problem:
    # These paths hold only field names and indices: `--worker-urls[1]`.
    return Problem("--" + problem.path.replace("_", "-"), problem.message)
