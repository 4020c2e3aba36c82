"""The settings of a class as the text of `--help`, and as a table for the docs."""

from __future__ import annotations

import textwrap
from itertools import groupby

from ..command import Command
from ..program import PROG
from .fields import Setting, settings_of
from .flags import CONFIG

_INDENT = 26


def flag_help(cls: type, width: int, *, config: bool = False) -> str:
    """All flags of a command by group, with their meaning, range and default."""
    parts = []
    for group, members in groupby(settings_of(cls), lambda setting: setting.group):
        parts.append(f"{group}:\n")
        parts += [entry(setting.usage, _meaning(setting), width) for setting in members]
        parts.append("\n")
    parts.append("Other:\n")
    if config:
        parts.append(entry(CONFIG.usage, CONFIG.help, width))
    parts.append(
        entry(
            "-V, --version",
            "print the versions of the program, of Python and of the packages",
            width,
        )
    )
    parts.append(entry("-h, --help", "print this help", width))
    return "".join(parts)


def command_help(command: Command, width: int) -> str:
    """The text of `--help` after a command."""
    usages = command.usage or (" ".join([*command.words, "[flags]" if command.flags else ""]),)
    lines = [f"{PROG} {command.name} {usage}".rstrip() for usage in usages]
    head = "Usage: " + "\n       ".join(lines) + "\n\n"
    return head + paragraphs(command.about, width) + command_details(command, width)


def command_details(command: Command, width: int) -> str:
    """The flags of a command, its notes, examples and exit statuses."""
    parts = []
    if command.flags is not None:
        parts.append(flag_help(command.flags(), width, config=command.config) + "\n")
    parts += [entry(left, right, width) for left, right in command.entries]
    parts += ["\n"] * bool(command.entries)
    parts.append(paragraphs(command.notes, width))
    if command.examples:
        parts.append("Examples:\n" + "".join(f"  {line}\n" for line in command.examples) + "\n")
    if command.status:
        parts.append(paragraphs(f"Exit status: {command.status}", width))
    return "".join(parts).rstrip("\n") + "\n"


def paragraphs(text: str, width: int) -> str:
    """Each line of the text as a paragraph."""
    filled = (textwrap.fill(t, max(width, 40), break_on_hyphens=False) for t in text.split("\n"))
    return "".join(f"{paragraph}\n\n" for paragraph in filled if paragraph)


def entry(left: str, right: str, width: int) -> str:
    """`  left    right`, the right part wrapped in its own column."""
    lines = textwrap.wrap(right, max(width - _INDENT, 30), break_on_hyphens=False) or [""]
    if len(left) + 4 > _INDENT:
        head = f"  {left}\n"
    else:
        head = f"  {left}".ljust(_INDENT) + lines.pop(0) + "\n"
    return head + "".join(" " * _INDENT + line + "\n" for line in lines)


def _meaning(setting: Setting) -> str:
    default = "" if setting.is_switch else f"default: {setting.default_text}"
    notes = "; ".join(filter(None, (setting.kind.range, default)))
    return f"{setting.help} ({notes})" if notes else setting.help


def markdown_table(cls: type, *, flags: bool = True, keys: bool = True) -> str:
    """The settings of `cls` as a Markdown table, optionally without the flags or the YAML keys."""
    titles = ["Flag"] * flags + ["YAML key"] * keys + ["Default", "Range", "Meaning"]
    lines = [titles, ["---"] * len(titles)]
    for each in settings_of(cls):
        names = [f"`{each.usage}`"] * flags + [f"`{each.name}`"] * keys
        lines.append([*names, each.default_text, each.kind.range, each.help])
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)
