"""Kinds that only launchers' settings have: command lines, environments, groups of GPUs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from ..errors import Problem
from .kinds import Kind, Unfit, did_you_mean, got, noting, step

_GPU = re.compile(r"[0-9]{1,4}|(GPU|MIG)-[0-9A-Za-z][\w./-]*", re.ASCII)


@frozen
class Words(Kind):
    """A command line: text, split like a shell does, or a list. A tuple in the settings.

    Each `{name}` in it must be one of the `placeholders`.
    """

    placeholders: tuple[str, ...]
    empty: bool = field(default=False, kw_only=True)
    expected = "text or a list of text items"

    def parse(self, value: object) -> tuple[str, ...]:
        if isinstance(value, str):
            try:
                words = tuple(shlex.split(value))
            except ValueError as error:  # "No closing quotation"
                raise Unfit(f"cannot be split into words: {str(error).lower()}") from None
        elif isinstance(value, list | tuple):
            words = tuple(_word(item, place) for place, item in enumerate(value, 1))
        else:
            raise self.unfit(value)
        if not words and not self.empty:
            raise self.unfit(None)
        for name in re.findall(r"\{([a-z_]+)\}", " ".join(words)):
            if name not in self.placeholders:
                hint = did_you_mean(name, self.placeholders)
                known = ", ".join(f"{{{known}}}" for known in self.placeholders)
                raise Unfit(f"unknown placeholder {{{name}}}{hint}; expected one of {known}")
        return words

    def show(self, value: Any) -> str:
        return shlex.join(value)


def _word(item: object, place: int) -> str:
    text = str(item) if isinstance(item, float) else _text_of(item)
    if text is None:
        raise Unfit(f"expected text as item {place}, got {got(item)}")
    return text


def _text_of(value: object) -> str | None:
    """Text, or a whole number that YAML has read: `- 2` after `- --dp-size`."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**18:
        return str(value)
    return value if isinstance(value, str) else None


@frozen
class Pairs(Kind):
    """Environment variables: a mapping of names to texts, without the names in `refused`."""

    refused: tuple[str, ...]
    reason: str
    expected = "a mapping"

    def parse(self, value: object) -> dict[str, str]:
        if not isinstance(value, Mapping):
            raise self.unfit(value)
        made: dict[str, str] = {}
        wrong: list[Problem] = []
        for name, text in value.items():
            with noting(wrong, step(name)):
                made[name] = self._text(name, text)
        if wrong:
            raise Unfit(wrong)
        return made

    def _text(self, name: object, value: object) -> str:
        if not isinstance(name, str) or not name or "=" in name or "\0" in name:
            raise Unfit("expected the name of an environment variable")
        if name in self.refused:
            raise Unfit(self.reason)
        text = _text_of(value)
        if text is None:
            # The file may have said `yes`, `1.10` or `null`, which YAML has changed.
            raise Unfit(f"expected text, got {got(value)}; put the value in quotes")
        if "\0" in text:
            raise Unfit("expected text without a NUL character")
        return text


@frozen
class GpuGroup(Kind):
    """The GPUs of one worker: `"0,1"`, an index, or a list. A tuple of texts in the settings.

    Anything that CUDA_VISIBLE_DEVICES takes: an index, `GPU-<uuid>`, `MIG-<uuid>`.
    """

    expected = "GPUs such as '0,1', GPU-<uuid> or MIG-<uuid>"

    def parse(self, value: object) -> tuple[str, ...]:
        items = value.split(",") if isinstance(value, str) else value
        ids = []
        for item in items if isinstance(items, list | tuple) else [items]:
            text = (_text_of(item) or "").strip()
            if not _GPU.fullmatch(text):
                raise self.unfit(value)
            ids.append(str(int(text)) if text.isdigit() else text)
        if not ids:
            raise self.unfit(value)
        if len(set(ids)) < len(ids):
            raise Unfit(f"names a GPU twice: {','.join(ids)}")
        return tuple(ids)
