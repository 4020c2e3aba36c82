"""Reading a YAML file strictly: mistakes are problems with line and column, never tracebacks."""

from __future__ import annotations

import math
from typing import Any

import yaml

from ..errors import Problem

_LEAST_VALUES = 100_000  # that aliases may always add up to


def read_yaml(path: str) -> tuple[object, list[Problem]]:
    """What the one document in `path` says, and what is wrong with it.

    An empty file is an empty mapping. A key given twice is a problem, but the data is returned, so
    that its other mistakes can be told too; after any other problem the data is an empty mapping.
    Dates stay text. Each problem's path is `path`.
    """
    try:
        with open(path, "rb") as file:
            raw = file.read()
    except OSError as error:
        reason = error.strerror or str(error)
        return {}, [Problem(path, f"cannot be read: {reason}")]
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # Replacing keeps the count of characters right even if the bad byte is not the first.
        before = raw[: error.start].decode("utf-8-sig", "replace")
        return {}, [Problem(path, f"{_place(before)}: not UTF-8 text")]
    return _parse(path, text)


def _parse(path: str, text: str) -> tuple[object, list[Problem]]:
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        # Before anything is constructed: unfolding merge keys takes as long as what they add up to.
        if node is not None and _unfolded(node, {}) > max(_LEAST_VALUES, len(text)):
            return {}, [Problem(path, "not usable: its aliases add up to too many values")]
        data = None if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        return {}, [Problem(path, f"{place}not valid YAML: {error.problem or error.context}")]
    except yaml.reader.ReaderError as error:
        place = _place(text[: error.position])
        return {}, [Problem(path, f"{place}: not valid YAML: a control character")]
    except RecursionError:
        return {}, [Problem(path, "not valid YAML: nested too deeply")]
    except (ValueError, LookupError):  # PyYAML on a value that its tag belies: `!!int x`
        return {}, [Problem(path, "not valid YAML: a tag with a value that does not fit it")]
    twice = [Problem(path, message) for message in loader.repeated]
    return {} if data is None else data, twice


def _unfolded(node: yaml.Node, known: dict[yaml.Node, float]) -> float:
    """How many values a node has with each alias replaced by what it stands for; infinity for a
    node within itself. Never more than its characters where there is no alias."""
    if node not in known:
        known[node] = math.inf  # if it is met within itself
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            inner = node.value
        elif isinstance(node, yaml.MappingNode):
            inner = [one for pair in node.value for one in pair]
        known[node] = 1 + sum(_unfolded(one, known) for one in inner)
    return known[node]


def _place(before: str) -> str:
    lines = before.split("\n")
    return f"line {len(lines)}, column {len(lines[-1]) + 1}"


_DATE = "tag:yaml.org,2002:timestamp"


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, but it sees repeated keys, and knows no dates."""

    def __init__(self, text: str) -> None:
        self.repeated: list[str] = []
        super().__init__(text)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
        # Before merge keys (<<) are unfolded: what is written beside one may override it.
        seen: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                name, mark = (key.tag, key.value), key.start_mark
                if name in seen:
                    self.repeated.append(
                        f"line {mark.line + 1}, column {mark.column + 1}: the key"
                        f" {key.value!r} is given twice, first in line {seen[name]}"
                    )
                seen.setdefault(name, mark.line + 1)
        return super().construct_mapping(node, deep)


_Loader.yaml_constructors = {
    tag: build for tag, build in yaml.SafeLoader.yaml_constructors.items() if tag != _DATE
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _DATE]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
