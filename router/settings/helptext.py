"""The flags of a settings class as the text of `--help`."""

from __future__ import annotations

import textwrap

import attrs

from .fields import Setting, settings_of
from .kinds import Switch

_INDENT = 26


def flag_help(cls: type[attrs.AttrsInstance], width: int) -> str:
    """All flags of `cls` by group, with their meaning, range and default."""
    groups: dict[str, list[Setting]] = {}
    for setting in settings_of(cls):
        groups.setdefault(setting.group, []).append(setting)
    parts = []
    for group, members in groups.items():
        parts.append(f"{group}:\n")
        parts += [entry(setting.usage, _meaning(setting), width) for setting in members]
        parts.append("\n")
    return "".join(parts)


def entry(left: str, right: str, width: int) -> str:
    """`  left    right`, the right part wrapped in its own column."""
    lines = textwrap.wrap(right, max(width - _INDENT, 30), break_on_hyphens=False) or [""]
    if len(left) + 4 > _INDENT:
        head = f"  {left}\n"
    else:
        head = f"  {left}".ljust(_INDENT) + lines.pop(0) + "\n"
    return head + "".join(" " * _INDENT + line + "\n" for line in lines)


def _meaning(setting: Setting) -> str:
    if isinstance(setting.kind, Switch):
        return setting.help
    notes = [setting.kind.range, f"default {setting.default_text}"]
    return f"{setting.help} ({'; '.join(filter(None, notes))})"
