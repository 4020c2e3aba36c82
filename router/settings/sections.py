"""Turns plain data into settings, strictly; reports all mistakes at once, by path."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Self

from attrs import frozen

from ..errors import Problem
from .fields import fields_of
from .kinds import Kind, Unfit, did_you_mean, got, noting, step


@frozen
class Settings:
    """The base of all classes whose fields are settings."""

    @classmethod
    def of(cls, data: object) -> Self:
        """Make an object from data as YAML or JSON gives it. Raises Unfit with all problems."""
        values, wrong = cls.read(data)
        if not wrong:
            made = cls(**values)
            wrong = list(made.problems())
        if wrong:
            raise Unfit(wrong)
        return made

    @classmethod
    def read(cls, data: object) -> tuple[dict[str, Any], list[Problem]]:
        """The good values in a mapping by setting name, and the problems of the others.

        Strict: no unknown or repeated keys, `true` is not a number, 3 is not text. Keys may have
        `-` instead of `_`. Paths are dotted: `launchers[1].model`.
        """
        if not isinstance(data, Mapping):
            return {}, [Problem("", f"expected a mapping, got {got(data)}")]
        known = fields_of(cls)
        given: dict[object, object] = {}
        values: dict[str, Any] = {}
        wrong: list[Problem] = []
        repeated: list[Problem] = []
        for key, item in data.items():
            name = field_name(key)
            if name in given:
                message = "is given twice, once with '-' and once with '_'"
                repeated.append(Problem(step(name), message))
            given[name] = item
        for name, setting in known.items():
            if name in given:
                with noting(wrong, name):
                    values[name] = setting.kind.parse(given[name])
            elif setting.required:
                wrong.append(Problem(name, "is required"))
        unknown = [
            Problem(step(key), f"unknown key{did_you_mean(key, known)}")
            for key in given
            if key not in known
        ]
        return values, wrong + unknown + repeated

    def problems(self) -> Iterator[Problem]:
        """Problems that involve several fields; paths are field names. Called if all are good."""
        yield from ()


def field_name(key: object) -> object:
    """The setting that a key of a YAML mapping means: `worker-urls` is `worker_urls`."""
    return key.replace("-", "_") if isinstance(key, str) else key


@frozen
class Section(Kind):
    """A mapping of settings: an object of `cls`. With `optional` also null."""

    cls: type[Settings]
    optional: bool = False
    expected = "a mapping"

    def parse(self, value: object) -> Settings | None:
        if isinstance(value, self.cls) or (value is None and self.optional):
            return value
        return self.cls.of(value)
