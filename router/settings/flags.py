"""Splits a command line into named texts; the settings interpret them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from attrs import frozen

from ..errors import Problem
from .fields import Setting, settings_of
from .kinds import Many, Text, did_you_mean, noting

CONFIG = Setting(
    "config",
    Text("a file name", metavar="FILE", optional=True),
    help="YAML file with any of these settings; flags override the file",
    group="Other",
    default_text="none",
)


@frozen
class Flags:
    """A split command line: raw values by setting name, and its formal mistakes."""

    values: dict[str, object]
    config: str | None
    problems: list[Problem]


def split_flags(arguments: Sequence[str], cls: type, *, config: bool = False) -> Flags:
    """Split `--flag value` and `--flag=value` for the settings of `cls`.

    The last of a repeated flag wins; a flag with several values gathers all of them. `--no-flag`
    turns a switch off. Flags cannot be abbreviated. With `config` there is also `--config FILE`.
    """
    known = {setting.flag: setting for setting in [*settings_of(cls), *[CONFIG] * config]}
    turned_off = {f"--no-{flag[2:]}": each for flag, each in known.items() if each.is_switch}
    values: dict[str, object] = {}
    gathered: dict[str, list[str]] = {}
    problems: list[Problem] = []
    rest = deque(arguments)

    def following(most: int) -> list[str]:
        found: list[str] = []
        while rest and len(found) < most and not _is_flag(rest[0]):
            found.append(rest.popleft())
        return found

    while rest:
        token = rest.popleft()
        flag, equals, text = token.partition("=")
        setting = known.get(flag)
        if not _is_flag(token):
            problems.append(Problem(token, "unexpected argument"))
        elif flag in turned_off and equals:
            problems.append(Problem(flag, "takes no value"))
        elif flag in turned_off:
            values[turned_off[flag].name] = False
        elif setting is None:
            following(len(rest))  # the value of an unknown flag is not a second mistake
            hint = did_you_mean(flag, [*known, "--help", "--version"])
            problems.append(Problem(flag, f"unknown flag{hint}"))
        elif setting.is_switch:
            values[setting.name] = text if equals else True
        elif isinstance(setting.kind, Many):
            found = [text] if equals else following(len(rest))
            if not found:
                problems.append(Problem(flag, "expected at least one value"))
            values[setting.name] = gathered.setdefault(setting.name, [])
            gathered[setting.name] += found
        elif equals or (found := following(1)):
            values[setting.name] = text if equals else found[0]
        else:
            message = f"expected {setting.kind.expected}, but no value follows"
            problems.append(Problem(flag, message))
    file = None
    with noting(problems, CONFIG.flag):
        file = CONFIG.kind.parse(values.pop(CONFIG.name, None))
    return Flags(values, file, problems)


def _is_flag(token: str) -> bool:
    """A negative number is a value (though a wrong one), not a flag."""
    return token.startswith("-") and len(token) > 1 and not token[1].isdigit()
