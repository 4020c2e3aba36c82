"""What a setting can be: how it is read from a flag or a YAML file, checked, and shown.

One kind reads both sources. A flag always gives text; YAML gives numbers and booleans too.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from enum import Enum
from typing import ClassVar

from attrs import field, frozen


class Unfit(ValueError):
    """A value that a setting cannot take. The text is a sentence that follows the path."""


def got(value: object) -> str:
    """Say what was found, in the words of somebody who writes YAML."""
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


class Kind(ABC):
    """How one setting is read, checked and shown. Values of it are frozen."""

    metavar: ClassVar[str] = ""

    @property
    @abstractmethod
    def expected(self) -> str:
        """What to write, as it follows the word "expected"."""

    @property
    def range(self) -> str:
        """The allowed values, for help and tables; empty where anything goes."""
        return ""

    @abstractmethod
    def parse(self, value: object) -> object:
        """Read `value`, or raise `Unfit`."""

    def show(self, value: object) -> str:
        """`value` as a person would write it."""
        return str(value)

    def unfit(self, value: object, hint: str = "") -> Unfit:
        return Unfit(f"expected {self.expected}, got {got(value)}{hint}")


@frozen
class Bounded(Kind):
    """A number with inclusive bounds; with `none` also the `word` for no number at all."""

    minimum: float | None = None
    maximum: float | None = None
    none: bool = field(default=False, kw_only=True)
    word: str = field(default="none", kw_only=True)

    noun: ClassVar[str]
    examples: ClassVar[str] = ""

    @abstractmethod
    def read(self, value: object) -> int | float | None:
        """The number that `value` stands for; None where it stands for none."""

    @property
    def expected(self) -> str:
        bounds = f" {self._bounds('from ', 'of at least ')}" if self._bounds() else ""
        word = f" or {self.word!r}" if self.none else ""
        examples = f" ({self.examples})" if self.examples else ""
        return f"{self.noun}{bounds}{word}{examples}"

    @property
    def range(self) -> str:
        parts = [self._bounds("", "at least "), self.word if self.none else ""]
        return ", or ".join(filter(None, parts))

    def _bounds(self, between: str = "", above: str = "") -> str:
        if self.minimum is None:
            return ""
        if self.maximum is None:
            return f"{above}{self.show(self.minimum)}"
        return f"{between}{self.show(self.minimum)} to {self.show(self.maximum)}"

    def parse(self, value: object) -> object:
        if self.none and (value is None or value == self.word):
            return None
        number = self.read(value)
        if number is None or not math.isfinite(number):
            raise self.unfit(value)
        if self.minimum is not None and number < self.minimum:
            raise self.unfit(value)
        if self.maximum is not None and number > self.maximum:
            raise self.unfit(value)
        return number


@frozen
class WholeNumber(Bounded):
    """An integer. A boolean or 3.0 is none."""

    metavar = "N"
    noun = "a whole number"

    def read(self, value: object) -> int | None:
        if isinstance(value, int) and not isinstance(value, bool):
            return value if abs(value) < 10**18 else None
        if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,18}", value):
            return int(value)
        return None


def _real(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and not re.fullmatch(
        r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", value, re.IGNORECASE
    ):
        return None
    try:
        return float(value)
    except OverflowError:  # an integer beyond what a float holds
        return None


@frozen
class Number(Bounded):
    """A finite number."""

    metavar = "X"
    noun = "a number"

    def read(self, value: object) -> float | None:
        return _real(value)

    def show(self, value: object) -> str:
        return f"{value:g}" if isinstance(value, float) else str(value)


def _split_unit(value: object, units: Mapping[str, int | float]) -> tuple[str, float] | None:
    """`("1.5", 60)` for "1.5m": the number's text and the worth of its unit."""
    if not isinstance(value, str):
        return None
    found = re.fullmatch(r"(.*?[0-9.]) ?([a-z]+)", value, re.IGNORECASE | re.DOTALL)
    unit = units.get(found[2].lower()) if found else None
    return (found[1], unit) if found and unit is not None else None


_TIME_UNITS: dict[str, float] = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}


@frozen
class Duration(Bounded):
    """A length of time: a float of seconds. Written as seconds, or as 500ms, 30s, 5m, 1h."""

    metavar = "TIME"
    noun = "a time"
    examples = "seconds, or like 500ms, 30s, 5m, 1h"

    def read(self, value: object) -> float | None:
        split = _split_unit(value, _TIME_UNITS)
        text, unit = split or (value, 1.0)
        number = _real(text)
        if number is None:
            return None
        # Dividing keeps 300ms equal to 0.3, which multiplying by 0.001 does not promise.
        return number / 1000 if unit == 0.001 else number * unit

    def show(self, value: object) -> str:
        if not isinstance(value, int | float):
            return str(value)
        for unit, worth in (("h", 3600), ("m", 60)):
            if value >= worth and value % worth == 0:
                return f"{value / worth:g}{unit}"
        return f"{value * 1000:g}ms" if 0 < value < 1 else f"{value:g}s"


# As in nginx and most tools, a bare K, M or G is a power of 1024; KB, MB, GB are powers of 1000.
_SIZE_UNITS: dict[str, int] = {
    "b": 1,
    **{f"{letter}{tail}": 1024**n for n, letter in enumerate("kmg", 1) for tail in ("", "ib")},
    **{f"{letter}b": 1000**n for n, letter in enumerate("kmg", 1)},
}


@frozen
class Size(Bounded):
    """A number of bytes: an int. Written as bytes, or as 64MiB, 64M (the same), 1GiB, 64MB."""

    metavar = "SIZE"
    noun = "a size"
    examples = "bytes, or like 64KiB, 64MiB, 64M, 1GiB"

    def read(self, value: object) -> int | None:
        split = _split_unit(value, _SIZE_UNITS)
        if split is None:
            return WholeNumber().read(value)
        number = _real(split[0])
        size = number * split[1] if number is not None else math.nan
        return int(size) if math.isfinite(size) and size == int(size) else None

    def show(self, value: object) -> str:
        if not isinstance(value, int | float):
            return str(value)
        for unit, worth in (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
            if value >= worth and value % worth == 0:
                return f"{value // worth}{unit}"
        return f"{value}B"


@frozen
class Switch(Kind):
    """On or off: a bool. As a flag `--name` and `--no-name`."""

    @property
    def expected(self) -> str:
        return "true or false"

    def parse(self, value: object) -> object:
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in ("true", "yes", "on"):
            return True
        if isinstance(value, str) and value.lower() in ("false", "no", "off"):
            return False
        raise self.unfit(value)

    def show(self, value: object) -> str:
        return "on" if value else "off"


@frozen
class Choice(Kind):
    """One of the values of an enum of strings."""

    metavar = "NAME"
    options: type[Enum]

    @property
    def expected(self) -> str:
        return self.range

    @property
    def range(self) -> str:
        *first, last = (str(option.value) for option in self.options)
        return f"{', '.join(first)} or {last}" if first else last

    def parse(self, value: object) -> object:
        for option in self.options:
            if value in (option, option.value) and not isinstance(value, bool):
                return option
        names = [str(option.value) for option in self.options]
        raise self.unfit(value, did_you_mean(value, names))

    def show(self, value: object) -> str:
        return str(value.value) if isinstance(value, Enum) else str(value)


@frozen
class Text(Kind):
    """Text that is not empty; with `optional` also nothing at all (in YAML: null)."""

    metavar = "TEXT"
    optional: bool = field(default=False, kw_only=True)

    @property
    def expected(self) -> str:
        return "text"

    def parse(self, value: object) -> object:
        if value is None and self.optional:
            return None
        if isinstance(value, str) and value.strip():
            return value
        raise self.unfit(value)


@frozen
class Many(Kind):
    """A list of `item`; a tuple in the settings. As a flag: several values, or the flag again."""

    item: Kind

    @property
    def expected(self) -> str:
        return "a list"

    @property
    def range(self) -> str:
        return self.item.range

    def parse(self, value: object) -> object:
        if not isinstance(value, list | tuple):
            raise self.unfit(value)
        return tuple(self.item.parse(item) for item in value)

    def show(self, value: object) -> str:
        if not isinstance(value, list | tuple):
            return str(value)
        return " ".join(self.item.show(item) for item in value)


def did_you_mean(word: object, known: list[str]) -> str:
    """` (did you mean X?)`, or nothing if no known word is near."""
    if not isinstance(word, str):
        return ""
    import difflib  # only mistakes need it

    near = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""
