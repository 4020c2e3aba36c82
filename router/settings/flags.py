"""Splits a command line into named texts; the settings interpret them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from attrs import field, frozen

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
    words: list[str] = field(factory=list)  # what is no flag and no value of one


def split_flags(
    arguments: Sequence[str], cls: type, *, config: bool = False, words: Sequence[str] = ()
) -> Flags:
    """Split `--flag value` and `--flag=value` for the settings of `cls`.

    The last of a repeated flag wins; a flag with several values gathers all of them. `--no-flag`
    turns a switch off. Flags cannot be abbreviated. With `config` there is also `--config FILE`.
    `words` names the arguments that are no flags: `NAME`, `[NAME]` if it may be left out, `NAME...`
    if there may be several.
    """
    known = {setting.flag: setting for setting in [*settings_of(cls), *[CONFIG] * config]}
    shorts = {setting.short: setting.flag for setting in known.values() if setting.short}
    turned_off = {f"--no-{flag[2:]}": each for flag, each in known.items() if each.is_switch}
    values: dict[str, object] = {}
    gathered: dict[str, list[str]] = {}
    problems: list[Problem] = []
    found_words: list[str] = []
    most = math.inf if any("..." in word for word in words) else len(words)
    rest = deque(arguments)

    def following(most: int) -> list[str]:
        found: list[str] = []
        while rest and len(found) < most and not _is_flag(rest[0]):
            found.append(rest.popleft())
        return found

    while rest:
        token = rest.popleft()
        flag, equals, text = token.partition("=")
        setting = known.get(shorts.get(flag, flag))
        if not _is_flag(token):
            if len(found_words) < most:
                found_words.append(token)
            else:
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
    missing = [word for word in words if not word.startswith("[")][len(found_words) :]
    problems += [Problem(word.removesuffix("..."), "is required") for word in missing]
    file = None
    with noting(problems, CONFIG.flag):
        file = CONFIG.kind.parse(values.pop(CONFIG.name, None))
    return Flags(values, file, problems, found_words)


def _is_flag(token: str) -> bool:
    """A negative number is a value (though a wrong one), not a flag."""
    return token.startswith("-") and len(token) > 1 and not token[1].isdigit()
