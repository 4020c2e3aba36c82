"""`check-config`: whether `serve --config FILE` would start, with the line of each mistake."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from ..errors import Problem, SettingsError
from ..settings import RouterSettings
from ..settings.yamlfile import places
from . import serve


def check(arguments: list[str]) -> int:
    """Read the file and all that it names; print the mistakes."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise SettingsError([Problem("check-config", "expected exactly one argument, the file")])
    (file,) = arguments
    try:
        settings = serve.reader(["--config", file])()
    except SettingsError as error:
        told = [placed(problem, file) for problem in error.problems]
        for _, line in sorted(told, key=lambda one: one[0]):
            print(line, file=sys.stderr)
        print(f"{file}: {len(told)} {'mistake' if len(told) == 1 else 'mistakes'}", file=sys.stderr)
        return 1
    print(f"{file} is good{_launched(settings)}")
    return 0


def _launched(settings: RouterSettings) -> str:
    launchers = [f"{each.name} ({each.num_workers})" for each in settings.launchers]
    return f"; launches {', '.join(launchers)}" if launchers else ""


def placed(problem: Problem, file: str) -> tuple[tuple[str, int], str]:
    """File and line of a problem, to sort by, and the sentence about it."""
    source, key = file, problem.path
    before, colon, after = problem.path.partition(": ")
    if before == file or (colon and Path(before).is_file()):
        source, key = before, after
    key = key.removeprefix("--")
    if found := re.fullmatch(r"line (\d+), (.*)", problem.message, re.DOTALL):
        return (source, int(found[1])), f"{source}:{found[1]}: {found[2]}"
    line = _line(places(source), key)
    where = f"{source}:{line}" if line else source
    return (source, line), ": ".join(filter(None, (where, key, problem.message)))


def _line(lines: dict[str, int], key: str) -> int:
    """The line of a key, or of the innermost one around it; 0 if there is none."""
    while key:
        for spelling in (key, key.replace("-", "_")):
            if spelling in lines:
                return lines[spelling]
        key = re.sub(r"\.?[^.\[\]]+$|\[[^\[\]]*\]$", "", key)
    return 0
