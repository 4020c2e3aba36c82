"""What only the settings of launchers can be: command lines, environments, groups of GPUs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import ClassVar

from attrs import field, frozen

from .kinds import Kind, Text, Unfit, did_you_mean, got

_GPU = re.compile(r"[0-9]{1,4}|(GPU|MIG)-[0-9A-Za-z][\w./-]*", re.ASCII)
_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")


@frozen
class Words(Kind):
    """A command line: text that is split as a shell does, or a list. A tuple in the settings.

    With `placeholders` each `{name}` in it must be one of them.
    """

    metavar: ClassVar[str] = "COMMAND"
    empty: bool = field(default=False, kw_only=True)
    placeholders: tuple[str, ...] = field(default=(), kw_only=True)

    @property
    def expected(self) -> str:
        return "text or a list of texts"

    def parse(self, value: object) -> object:
        if isinstance(value, str):
            try:
                words = tuple(shlex.split(value))
            except ValueError as error:  # "No closing quotation"
                raise Unfit(f"cannot be split as a shell does: {_small(str(error))}") from None
        elif isinstance(value, list | tuple):
            words = tuple(_word(item, index) for index, item in enumerate(value))
        else:
            raise self.unfit(value)
        if not words and not self.empty:
            raise Unfit(f"expected {self.expected}, got nothing")
        if self.placeholders:
            self._check_placeholders(words)
        return words

    def _check_placeholders(self, words: tuple[str, ...]) -> None:
        for word in words:
            for name in _PLACEHOLDER.findall(word):
                if name not in self.placeholders:
                    hint = did_you_mean(name, list(self.placeholders))
                    known = ", ".join(f"{{{known}}}" for known in self.placeholders)
                    raise Unfit(f"unknown placeholder {{{name}}}{hint}; known are {known}")

    def show(self, value: object) -> str:
        return shlex.join(value) if isinstance(value, list | tuple) else str(value)


def _word(item: object, index: int) -> str:
    if isinstance(item, str):
        return item
    if isinstance(item, int | float) and not isinstance(item, bool):
        return str(item)  # `- --dp-size` and `- 2` beside it
    raise Unfit(f"expected text at place {index + 1}, got {got(item)}")


def _small(words: str) -> str:
    return words[:1].lower() + words[1:]


@frozen
class Pairs(Kind):
    """A mapping of names to texts; a dict in the settings. `refused` has names with the reason."""

    metavar: ClassVar[str] = "MAP"
    refused: tuple[tuple[str, str], ...] = ()

    @property
    def expected(self) -> str:
        return "a mapping"

    def parse(self, value: object) -> object:
        if not isinstance(value, Mapping):
            raise self.unfit(value)
        return {self.name(name): self.text(name, text) for name, text in value.items()}

    def name(self, name: object) -> str:
        """The name of one pair. Raises Unfit."""
        if not isinstance(name, str) or not name or "=" in name or "\0" in name:
            raise Unfit("expected the name of an environment variable")
        return name

    def text(self, name: object, value: object) -> str:
        """The text of one pair. Raises Unfit."""
        for word, reason in self.refused:
            if name == word:
                raise Unfit(reason)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str):
            # What YAML made of `yes`, `1.10` or `null` is perhaps not what was written.
            raise Unfit(f"expected text, got {got(value)}; put it in quotes")
        if "\0" in value:
            raise Unfit("expected text without a NUL character")
        return value

    def show(self, value: object) -> str:
        if isinstance(value, Mapping):
            return " ".join(f"{name}={text}" for name, text in value.items())
        return str(value)


@frozen
class GpuGroup(Kind):
    """The GPUs of one worker: `"0,1"`, an index, or a list. A tuple of texts in the settings.

    Anything that CUDA_VISIBLE_DEVICES takes: an index, `GPU-<uuid>`, `MIG-<uuid>`.
    """

    metavar: ClassVar[str] = "IDS"

    @property
    def expected(self) -> str:
        return "GPUs like '0,1', GPU-<uuid> or MIG-<uuid>"

    def parse(self, value: object) -> object:
        items: list[object]
        if isinstance(value, str):
            items = [part.strip() for part in value.split(",")]
        elif isinstance(value, list | tuple):
            items = list(value)
        else:
            items = [value]
        ids = []
        for item in items:
            if isinstance(item, int) and not isinstance(item, bool) and item >= 0:
                item = str(item)
            if not isinstance(item, str) or not _GPU.fullmatch(item):
                raise self.unfit(value)
            ids.append(str(int(item)) if item.isdigit() else item)
        if not ids:
            raise self.unfit(value)
        if len(set(ids)) < len(ids):
            raise Unfit(f"names a GPU twice: {','.join(ids)}")
        return tuple(ids)

    def show(self, value: object) -> str:
        return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


@frozen
class Name(Text):
    """A short name, fit for a file name."""

    @property
    def expected(self) -> str:
        return "a name of letters, digits, '.', '_' and '-', at most 64 of them"

    def parse(self, value: object) -> object:
        if isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", value):
            return value
        raise self.unfit(value)


@frozen
class Host(Text):
    """An address or a host name, without port or scheme."""

    metavar: ClassVar[str] = "HOST"

    @property
    def expected(self) -> str:
        return "an address or a host name"

    def parse(self, value: object) -> object:
        if isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+", value):
            return value
        raise self.unfit(value)
