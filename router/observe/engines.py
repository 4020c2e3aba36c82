"""Merges what the workers say at `/metrics` into one exposition in Prometheus' text format.

The parser of prometheus_client takes quadratic time for some input, so that a worker could stop the
router with it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from attrs import field, frozen

from .tally import PREFIX

WORKER = "worker_addr"
"""The label with the worker's URL, named as sgl-router names it."""

UP = PREFIX + "engine_metrics_up"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_MOST_SERIES = 50_000  # of one worker
_LONGEST = 64 * 1024  # characters of a line

_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_LABEL = r"[a-zA-Z_][a-zA-Z0-9_]*"
_TEXT = r'[^"\\]*(?:\\[\\"n][^"\\]*)*'
_ONE = rf'{_LABEL}[ \t]*=[ \t]*"{_TEXT}"[ \t]*'
_LABELS = re.compile(rf'({_LABEL})[ \t]*=[ \t]*"({_TEXT})"')
# No two neighbours match the same characters: each line takes linear time.
_SERIES = re.compile(
    rf"({_NAME})(?:[ \t]*{{[ \t]*((?:{_ONE}(?:,[ \t]*{_ONE})*(?:,[ \t]*)?)?)}})?"
    r"[ \t]*(?<=[ \t}])([^ \t]+)(?:[ \t]+(-?[0-9]{1,18}))?"
)
_COMMENT = re.compile(rf"#[ \t]+(TYPE|HELP)[ \t]+({_NAME})(?:[ \t]+(.*))?")
_NUMBER = re.compile(
    r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?|[+-]?inf|nan", re.IGNORECASE
)
_TYPES = {name: name for name in ("counter", "gauge", "histogram", "summary", "untyped")}
_TYPES["unknown"] = "untyped"
_PARTS = {"_bucket": ("histogram",), "_sum": ("histogram", "summary")}
_PARTS["_count"] = _PARTS["_sum"]
_BOUND = {"histogram": "le", "summary": "quantile"}


class Garbage(ValueError):
    """Not an exposition that a Prometheus server would take."""


@frozen
class Report:
    """The metrics of one worker."""

    types: dict[str, str] = field(factory=dict)  # by the name of the family
    helps: dict[str, str] = field(factory=dict)
    series: dict[tuple[str, str], str] = field(factory=dict)  # value by name and labels

    @classmethod
    def of(cls, body: bytes) -> Report:
        """The report in an answer. Raises Garbage."""
        try:
            text = body.decode()
        except UnicodeDecodeError as error:
            raise Garbage("not UTF-8") from error
        if "\0" in text:
            raise Garbage("a NUL character")
        report = cls()
        for line in text.split("\n"):
            report._take(line.strip(" \t\r"))
        return report

    def _take(self, line: str) -> None:
        if len(line) > _LONGEST:
            raise Garbage("a line is too long")
        if line.startswith("#"):
            self._comment(line)
        elif line:
            self._one(line)

    def _comment(self, line: str) -> None:
        found = _COMMENT.fullmatch(line)
        if found is None:
            return
        what, name, text = found[1], found[2], found[3] or ""
        if what == "HELP":
            # A backslash that escapes nothing stands for itself.
            text = re.sub(r"\\([\\n]?)", lambda m: m[0] if m[1] else r"\\", text)
            if len(self.helps) < _MOST_SERIES:
                self.helps.setdefault(name, text)
            return
        kind = _TYPES.get(text)
        if kind is None or self.types.setdefault(name, kind) != kind:
            raise Garbage(f"the type of {name}")

    def _one(self, line: str) -> None:
        found = _SERIES.fullmatch(line)
        if found is None:
            raise Garbage(f"not a sample: {line[:80]}")
        name, inside, value, when = found.groups()
        pairs = _LABELS.findall(inside or "")
        labels = dict(pairs)
        if len(labels) < len(pairs) or any(label.startswith("__") for label in labels):
            raise Garbage(f"the labels of {name}")
        family = _family(name, self.types)
        kind = self.types.setdefault(family, "untyped")
        bound = labels.get(_BOUND.get(kind, ""))
        if UP in (name, family) or (kind == "histogram" and name == family):
            raise Garbage(f"{name} must not be a sample")
        if not _NUMBER.fullmatch(value) or not (bound is None or _NUMBER.fullmatch(bound)):
            raise Garbage(f"a number of {name}")
        own = WORKER
        while own in labels:
            own = f"exported_{own}"  # as Prometheus renames labels that collide
        if own != WORKER:
            labels[own] = labels.pop(WORKER)
        key = name, "".join(f',{label}="{text}"' for label, text in sorted(labels.items()))
        if key in self.series or len(self.series) == _MOST_SERIES:
            raise Garbage(f"{name} twice, or too many series")
        # Written anew: servers refuse numbers that are too large for a float.
        number = f"{float(value)}".replace("inf", "Inf").replace("nan", "NaN")
        self.series[key] = f"{number} {when}" if when else number


def expose(answers: Mapping[str, bytes | str]) -> bytes:
    """The exposition of the workers' answers, by URL; a `str` says why there is no answer."""
    reports: dict[str, Report] = {}
    up = []
    for url, answer in answers.items():
        why = answer if isinstance(answer, str) else ""
        if isinstance(answer, bytes):
            try:
                reports[url] = Report.of(answer)
            except Garbage:
                why = "garbage"
        up.append(f'{UP}{{{WORKER}="{_escaped(url)}",why="{_escaped(why)}"}} {0 if why else 1}')
    about = "1 if the worker answered with its metrics; 0: `why` it did not."
    return "\n".join(
        [f"# HELP {UP} {about}", f"# TYPE {UP} gauge", *up, *_merged(reports), ""]
    ).encode()


def _merged(reports: Mapping[str, Report]) -> list[str]:
    types: dict[str, str] = {}
    helps: dict[str, str] = {}
    for report in reports.values():
        for name, kind in report.types.items():
            if types.setdefault(name, kind) != kind:  # the workers disagree
                types[name] = "untyped"
        for name, text in report.helps.items():
            helps.setdefault(name, text)
    for name in types:
        if (base := _base(name, types)) is not None:  # its part is a family of another worker
            types[base] = "untyped"
    families: dict[str, list[str]] = {}
    for url, report in reports.items():
        worker = f'{WORKER}="{_escaped(url)}"'
        for (name, labels), value in report.series.items():
            series = families.setdefault(_family(name, types), [])
            series.append(f"{name}{{{worker}{labels}}} {value}")
    lines = []
    for name, series in families.items():
        if name in helps:
            lines.append(f"# HELP {name} {helps[name]}")
        lines += [f"# TYPE {name} {types.get(name, 'untyped')}", *series]
    return lines


def _family(name: str, types: Mapping[str, str]) -> str:
    return name if name in types else _base(name, types) or name


def _base(name: str, types: Mapping[str, str]) -> str | None:
    """The histogram or summary that has parts of this name."""
    for suffix, kinds in _PARTS.items():
        base = name.removesuffix(suffix)
        if base != name and types.get(base) in kinds:
            return base
    return None


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
