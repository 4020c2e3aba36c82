"""Splitting a command line into named texts. What the texts mean is the settings' business."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
from attrs import frozen

from ..errors import Problem
from .fields import Setting, settings_of
from .kinds import did_you_mean


@frozen
class Flags:
    """What a command line says: raw values by setting name, and the mistakes in its form."""

    values: dict[str, object]
    config: str | None
    problems: tuple[Problem, ...]


def split_flags(
    arguments: Sequence[str], cls: type[attrs.AttrsInstance], *, config: bool = False
) -> Flags:
    """Split `--flag value` and `--flag=value` for the settings of `cls`.

    The last of a repeated flag wins; one that takes several values gathers them all. `--no-flag`
    turns a switch off. Nothing is abbreviated. With `config` there is also `--config FILE`.
    """
    return _Splitter(arguments, cls, config).split()


def _is_flag(token: str) -> bool:
    """A negative number is a value (though a wrong one), not a flag."""
    return token.startswith("-") and len(token) > 1 and not token[1].isdigit()


class _Splitter:
    def __init__(
        self, arguments: Sequence[str], cls: type[attrs.AttrsInstance], config: bool
    ) -> None:
        self.rest = list(arguments)
        self.known: dict[str, Setting] = {setting.flag: setting for setting in settings_of(cls)}
        self.takes_config = config
        self.values: dict[str, object] = {}
        self.config: str | None = None
        self.problems: list[Problem] = []

    def split(self) -> Flags:
        while self.rest:
            token = self.rest.pop(0)
            if not _is_flag(token):
                self.problems.append(Problem(token, "unexpected argument"))
                continue
            flag, equals, text = token.partition("=")
            self._flag(flag, text if equals else None)
        return Flags(self.values, self.config, tuple(self.problems))

    def _flag(self, flag: str, text: str | None) -> None:
        if flag == "--config" and self.takes_config:
            value = text if text is not None else self._next()
            if value:
                self.config = value
            else:
                self.problems.append(Problem(flag, "expected the name of a file"))
        elif flag in self.known:
            self._setting(self.known[flag], text)
        elif (setting := self._negated(flag)) is not None:
            if text is None:
                self.values[setting.name] = False
            else:
                self.problems.append(Problem(flag, "takes no value"))
        else:
            # Its value, if it has one, is no mistake of its own.
            self._following()
            names = [*self.known, "--help", "--version"]
            names += ["--config"] if self.takes_config else []
            self.problems.append(Problem(flag, f"unknown flag{did_you_mean(flag, names)}"))

    def _setting(self, setting: Setting, text: str | None) -> None:
        if not setting.takes_value:
            self.values[setting.name] = True if text is None else text
        elif setting.many:
            given = [text] if text is not None else self._following()
            if not given:
                self.problems.append(Problem(setting.flag, "expected at least one value"))
            old = self.values.get(setting.name, [])
            assert isinstance(old, list)
            self.values[setting.name] = [*old, *given]
        else:
            value = text if text is not None else self._next()
            if value is None:
                message = f"expected {setting.kind.expected}, but no value follows"
                self.problems.append(Problem(setting.flag, message))
            else:
                self.values[setting.name] = value

    def _negated(self, flag: str) -> Setting | None:
        setting = self.known.get("--" + flag.removeprefix("--no-"))
        switch = setting is not None and not setting.takes_value
        return setting if flag.startswith("--no-") and switch else None

    def _next(self) -> str | None:
        return None if not self.rest or _is_flag(self.rest[0]) else self.rest.pop(0)

    def _following(self) -> list[str]:
        values = []
        while (value := self._next()) is not None:
            values.append(value)
        return values
