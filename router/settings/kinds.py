"""The kinds of settings: how each is read from a flag or a YAML file, checked, and shown.

One kind reads both sources. A flag always gives text; YAML gives numbers and booleans too.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from ipaddress import ip_network
from typing import Annotated, Any, ClassVar

from attrs import field, frozen

from ..errors import Problem
from ..text import LONGEST_LABEL


class Unfit(ValueError):
    """A value that a setting cannot take. Holds a sentence to follow the setting's path, or a
    problem for each wrong part of the value, with its path within the value."""

    def __init__(self, wrong: str | Iterable[Problem]) -> None:
        self.problems = [Problem("", wrong)] if isinstance(wrong, str) else list(wrong)
        super().__init__("; ".join(map(str, self.problems)))


@contextmanager
def noting(problems: list[Problem], path: str) -> Iterator[None]:
    """Add the problems of an Unfit to `problems`, each with `path` before its own."""
    try:
        yield
    except Unfit as unfit:
        for problem in unfit.problems:
            dot = "." if path and problem.path and not problem.path.startswith("[") else ""
            problems.append(Problem(f"{path}{dot}{problem.path}", problem.message))


def at(source: str, problem: Problem) -> Problem:
    """`problem` with the name of its file."""
    return Problem(": ".join(filter(None, (source, problem.path))), problem.message)


def step(key: object) -> str:
    """The path step for a key: its name, or the key in brackets if it is not a name."""
    name = key if isinstance(key, str) else "null" if key is None else got(key)
    return name if re.fullmatch(r"[\w-]+", name) else f"[{got(key)}]"


def got(value: object) -> str:
    """Describe a wrong value, in the words of YAML."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "true" if value else "false"
        case str():
            return repr(value) if len(value) <= 60 else f"{value[:50]!r}..."
        case int() if abs(value) >= 10**30:  # Python refuses to print integers that are too long
            return "a very large number"
        case int() | float():
            return repr(value)
        case Mapping():
            return "a mapping"
        case list() | tuple():
            return "a list"
        case _:
            return type(value).__name__


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """` (did you mean X?)`, or nothing if no known word is similar."""
    import difflib  # only mistakes need it

    near = difflib.get_close_matches(word, known, n=1) if isinstance(word, str) else []
    return f" (did you mean {near[0]}?)" if near else ""


@frozen
class Kind(ABC):
    """How one setting is read, checked and described."""

    metavar = ""  # stands for a value in help
    expected = ""  # what to write, after the word "expected"
    range = ""  # allowed values, for help and tables; empty if there is no limit

    @abstractmethod
    def parse(self, value: object) -> Any:
        """Read `value`, or raise `Unfit`. A value that is already parsed stays unchanged."""

    def unfit(self, value: object, hint: str = "") -> Unfit:
        return Unfit(f"expected {self.expected}, got {got(value)}{hint}")


_NUMBER = re.compile(r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?) ?([a-z]*)", re.I | re.A)


@frozen
class Number(Kind):
    """A finite number with inclusive bounds, shown as written. `none` is the word for no number."""

    minimum: float | str | None = None
    maximum: float | str | None = None
    none: str = field(default="", kw_only=True)

    metavar = "X"
    noun = "a number"
    examples = ""
    whole = False
    units: ClassVar[Mapping[str, float]] = {"": 1}

    @property
    def expected(self) -> str:  # type: ignore[override]
        word = f" or {self.none!r}" if self.none else ""
        return f"{self.noun}{self._bounds(' from ', ' of at least ')}{word}{self.examples}"

    @property
    def range(self) -> str:  # type: ignore[override]
        return ", or ".join(filter(None, (self._bounds("", "at least "), self.none)))

    def _bounds(self, between: str, above: str) -> str:
        if self.maximum is not None:
            return f"{between}{self.minimum} to {self.maximum}"
        return "" if self.minimum is None else f"{above}{self.minimum}"

    def parse(self, value: object) -> int | float | None:
        if self.none and (value is None or value == self.none):
            return None
        number = self.read(value)
        low = -math.inf if self.minimum is None else self.read(self.minimum)
        high = math.inf if self.maximum is None else self.read(self.maximum)
        if not (math.isfinite(number) and low <= number <= high):
            raise self.unfit(value)
        return int(number) if self.whole else float(number)

    def read(self, value: object) -> int | float:
        """The number that `value` means, in the kind's unit; a non-finite one if it means none."""
        if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,18}", value):
            return int(value)
        if isinstance(value, str) and (found := _NUMBER.fullmatch(value)):
            unit = self.units.get(found[2].lower(), math.nan)
            # Dividing makes 300ms exactly 0.3; multiplying by 0.001 might not.
            number = float(found[1]) / 1000 if unit == 0.001 else float(found[1]) * unit
            return number if number.is_integer() or not self.whole else math.nan
        if isinstance(value, int) and not isinstance(value, bool):
            return value if abs(value) < 10**18 else math.inf
        return value if isinstance(value, float) and not self.whole else math.nan


@frozen
class WholeNumber(Number):
    """An integer. Booleans and 3.0 do not count."""

    metavar = "N"
    noun = "a whole number"
    whole = True
    units: ClassVar[Mapping[str, float]] = {}


@frozen
class Duration(Number):
    """A length of time: a float of seconds. Written in seconds, or as 500ms, 30s, 5m, 1h."""

    metavar = "TIME"
    noun = "a time"
    examples = " (in seconds, or with a unit: 500ms, 30s, 5m, 1h)"
    units: ClassVar[Mapping[str, float]] = {"": 1, "ms": 0.001, "s": 1, "m": 60, "h": 3600}


@frozen
class Size(Number):
    """A number of bytes: an int. Written in bytes, or as 64MiB, 64M (the same), 1GiB, 64MB."""

    metavar = "SIZE"
    noun = "a size"
    examples = " (in bytes, or with a unit: 64KiB, 64MiB, 64M, 1GiB)"
    whole = True
    # As in nginx, a bare K, M or G is a power of 1024; KB, MB, GB are powers of 1000.
    units: ClassVar[Mapping[str, float]] = {
        "b": 1,
        **{f"{letter}{tail}": 1024**n for n, letter in enumerate("kmg", 1) for tail in ("", "ib")},
        **{f"{letter}b": 1000**n for n, letter in enumerate("kmg", 1)},
    }


@frozen
class Switch(Kind):
    """On or off: a bool. As a flag `--name` and `--no-name`."""

    expected = "true or false"

    def parse(self, value: object) -> bool:
        if isinstance(value, bool):
            return value
        word = value.lower() if isinstance(value, str) else ""
        if word not in ("true", "yes", "on", "false", "no", "off"):
            raise self.unfit(value)
        return word in ("true", "yes", "on")


@frozen
class Choice(Kind):
    """One of the values of an enum of strings."""

    options: type[StrEnum]
    metavar: str = field(default="NAME", kw_only=True)

    @property
    def range(self) -> str:  # type: ignore[override]
        *first, last = self.options
        return f"{', '.join(first)} or {last}" if first else last

    @property
    def expected(self) -> str:  # type: ignore[override]
        return self.range

    def parse(self, value: object) -> StrEnum:
        word = value
        if isinstance(value, bool):  # so YAML reads these words
            word = "on" if value else "off"
        if isinstance(word, str) and word in list(self.options):
            return self.options(word)
        raise self.unfit(value, did_you_mean(value, self.options))


@frozen
class Text(Kind):
    """Text of a pattern, by default any that is not blank; with `optional` also none (YAML:
    null)."""

    expected: str = "text"
    pattern: str = r"(?s).*\S.*"
    optional: bool = field(default=False, kw_only=True)
    metavar: str = field(default="TEXT", kw_only=True)

    def parse(self, value: object) -> str | None:
        if value is None and self.optional:
            return None
        if isinstance(value, str) and re.fullmatch(self.pattern, value):
            return value
        raise self.unfit(value)


@frozen
class WebOrigin(Kind):
    """The origin of web pages, or `*`: text in lower case."""

    metavar = "ORIGIN"
    expected = "an origin such as https://tools.example.org, or *"

    def parse(self, value: object) -> str:
        text = value.lower() if isinstance(value, str) else ""
        if not re.fullmatch(r"\*|https?://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]+)?", text):
            raise self.unfit(value)
        return text


@frozen
class HostRule(Kind):
    """A host name, a pattern of names, an address or a network: text."""

    metavar = "HOST"
    expected = "a host name, a pattern such as *.internal, or a network such as 10.0.0.0/8"

    def parse(self, value: object) -> str:
        if isinstance(value, str) and re.fullmatch(
            r"[A-Za-z0-9*?._-]*[A-Za-z*?][A-Za-z0-9*?._-]*", value
        ):
            return value
        try:
            ip_network(value if isinstance(value, str) else "", strict=False)
        except ValueError:
            raise self.unfit(value) from None
        return str(value)


@frozen
class Many(Kind):
    """A list of `item`; a tuple in the settings. As a flag: several values, or the flag again."""

    item: Kind
    expected = "a list"

    def parse(self, value: object) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple):
            raise self.unfit(value)
        made: list[Any] = []
        wrong: list[Problem] = []
        for index, item in enumerate(value):
            with noting(wrong, f"[{index}]"):
                made.append(self.item.parse(item))
        if wrong:
            raise Unfit(wrong)
        return tuple(made)


Bytes = Annotated[int, Size("1B")]
Count = Annotated[int, WholeNumber(1)]
File = Annotated[str | None, Text(optional=True, metavar="FILE")]
Key = Annotated[str | None, Text(optional=True, metavar="KEY")]
OptionalTime = Annotated[float | None, Duration("1ms", none="none")]
Port = Annotated[int, WholeNumber(0, 65535)]
RunId = Annotated[
    str | None,
    Text(
        f"a name of at most {LONGEST_LABEL} characters",
        rf"(?s)(?=.*\S).{{1,{LONGEST_LABEL}}}",
        optional=True,
        metavar="ID",
    ),
]
Slots = Annotated[int | None, WholeNumber(1, 10_000, none="auto")]
Time = Annotated[float, Duration("1ms")]
