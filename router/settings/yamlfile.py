"""Reads a YAML file strictly: mistakes become problems with line and column, never tracebacks."""

from __future__ import annotations

import codecs
import math
from typing import Any

import yaml

from ..errors import Problem

_LEAST_VALUES = 100_000  # aliases may always add up to this many


def read_yaml(path: str) -> tuple[object, list[Problem]]:
    """The content of the one document in `path`, and its problems.

    An empty file is an empty mapping. A repeated key is a problem, but the data is returned, so
    that its other mistakes can be reported too; after any other problem the data is an empty
    mapping. Dates stay text. Each problem's path is `path`.
    """
    try:
        with open(path, "rb") as file:
            raw = file.read().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        reason = error.strerror or str(error)
        return {}, [Problem(path, f"cannot be read: {reason}")]
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode()
        return {}, [Problem(path, f"{_place(before)}: not UTF-8 text")]
    return _parse(path, text)


def places(path: str) -> dict[str, int]:
    """The line of each key and list item of a YAML file, by its path (`launchers[1].model`), keys
    as written and with `_`; nothing if the file cannot be read."""
    found: dict[str, int] = {}
    try:
        with open(path, "rb") as file:
            root = _Loader(file.read().removeprefix(codecs.BOM_UTF8).decode()).get_single_node()
        if root is not None and _unfolded(root, {}) <= _LEAST_VALUES:
            _place_all(root, "", found)
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        pass
    return found


def _place_all(node: yaml.Node, path: str, found: dict[str, int]) -> None:
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            found[f"{path}[{index}]"] = item.start_mark.line + 1
            _place_all(item, f"{path}[{index}]", found)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            for name in dict.fromkeys((str(key.value), str(key.value).replace("-", "_"))):
                inner = f"{path}.{name}" if path else name
                found[inner] = key.start_mark.line + 1
                _place_all(value, inner, found)


def _parse(path: str, text: str) -> tuple[object, list[Problem]]:
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        # Before construction: unfolding merge keys takes time in proportion to their total.
        if node is not None and _unfolded(node, {}) > max(_LEAST_VALUES, len(text)):
            return {}, [Problem(path, "the aliases expand to too many values")]
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
    except (ValueError, LookupError):  # PyYAML on a value that contradicts its tag: `!!int x`
        return {}, [Problem(path, "not valid YAML: a value does not fit its tag")]
    twice = [Problem(path, message) for message in loader.repeated]
    return {} if data is None else data, twice


def _unfolded(node: yaml.Node, known: dict[yaml.Node, float]) -> float:
    """The number of values of a node with each alias replaced by its target; infinity for a node
    within itself. Without aliases, never more than the node's characters."""
    if node not in known:
        known[node] = math.inf  # in case the node is met within itself
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
    """PyYAML's safe loader, with checks for repeated keys and without dates."""

    def __init__(self, text: str) -> None:
        self.repeated: list[str] = []
        super().__init__(text)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
        # Before merge keys (<<) are unfolded: keys beside a merge key may override its keys.
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
