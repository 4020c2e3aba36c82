"""`completion`: scripts that have a shell complete commands, flags and values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from ..command import Command
from ..errors import Problem, SettingsError
from ..program import PROG
from ..settings import settings_of
from ..settings.fields import Setting
from ..settings.flags import CONFIG
from ..settings.kinds import Choice, Many, did_you_mean

_NAMES = (PROG, "router.pyz")
_FILES = ("FILE", "DIR", "PATH")
_ALWAYS = (("--help", "-h", "print the help"), ("--version", "-V", "print the versions"))


def script(arguments: list[str], commands: Iterable[Command]) -> str:
    """The script for a shell. Raises SettingsError."""
    if len(arguments) != 1:
        raise SettingsError([Problem("completion", "expected exactly one argument, the shell")])
    (shell,) = arguments
    if shell not in _SHELLS:
        hint = did_you_mean(shell, _SHELLS)
        raise SettingsError([Problem(shell, f"expected {', '.join(_SHELLS)}{hint}")])
    return _SHELLS[shell](list(commands))


def _settings(command: Command) -> list[Setting]:
    if command.flags is None:
        return []
    return [*settings_of(command.flags()), *[CONFIG] * command.config]


def _values(setting: Setting) -> list[str] | None:
    """What may follow a flag: words, files (an empty list), or anything (None)."""
    kind = setting.kind.item if isinstance(setting.kind, Many) else setting.kind
    if isinstance(kind, Choice):
        return list(kind.options)
    return [] if kind.metavar in _FILES else None


def _word_values(command: Command, commands: list[Command]) -> list[list[str] | None]:
    """What the arguments of the command may be, each as for `_values`; the last one also stands for
    those that follow."""
    found: list[list[str] | None] = []
    for word in command.words:
        if "|" in word:
            found.append(word.split("|"))
        elif word == "[COMMAND]":
            found.append([each.name for each in commands])
        else:
            found.append([] if word.strip("[].") in _FILES else None)
    return found


def _choice(
    values: list[list[str] | None], here: str, words: Callable[[list[str]], str], files: str
) -> str:
    """The code that completes an argument; `here` is 2 at the first one."""
    codes = [":" if each is None else words(each) if each else files for each in values] or [":"]
    if len(codes) == 1:
        return codes[0]
    return f"if (( {here} == 2 )); then {codes[0]}; else {codes[-1]}; fi"


def _flags(command: Command) -> Iterator[str]:
    if not command.raw:
        for setting in _settings(command):
            yield setting.flag
            if setting.short:
                yield setting.short
        for long, short, _ in _ALWAYS:
            yield from (long, short)


def _cases(commands: list[Command], words: Callable[[list[str]], str], files: str) -> Iterator[str]:
    """The rows of a `case "$command $previous"` about the values of flags."""
    for command in commands:
        for setting in _settings(command):
            if setting.is_switch:
                continue
            names = [setting.flag, *filter(None, [setting.short])]
            pattern = "|".join(f'"{command.name} {name}"' for name in names)
            values = _values(setting)
            then = ":" if values is None else words(values) if values else files
            yield f"    {pattern}) {then}; return ;;"


def _bash(commands: list[Command]) -> str:
    def words(values: list[str]) -> str:
        return f"""COMPREPLY=($(compgen -W "{" ".join(values)}" -- "$current"))"""

    files = 'COMPREPLY=($(compgen -f -- "$current"))'
    lines = [
        f"# bash completion of {PROG}: source <({PROG} completion bash)",
        "_sglang_d_router() {",
        '  local current="${COMP_WORDS[COMP_CWORD]}" previous="${COMP_WORDS[COMP_CWORD-1]}"',
        "  local command=serve",
        "  compopt -o filenames 2>/dev/null",
        "  if (( COMP_CWORD > 1 )) && [[ ${COMP_WORDS[1]} != -* ]]; then",
        '    command="${COMP_WORDS[1]}"',
        "  fi",
        '  case "$command $previous" in',
        *_cases(commands, words, files),
        "  esac",
        "  if (( COMP_CWORD == 1 )) && [[ $current != -* ]]; then",
        f"    {words([command.name for command in commands])}",
        "    return",
        "  fi",
        '  case "$command" in',
    ]
    for command in commands:
        values = _word_values(command, commands)
        then = _choice(values, "COMP_CWORD", words, files)
        flags = words(list(_flags(command)))
        lines.append(
            f'    {command.name}) if [[ "$current" == -* ]]; then {flags}; else {then}; fi ;;'
        )
    return "\n".join([*lines, "  esac", "}", f"complete -F _sglang_d_router {' '.join(_NAMES)}\n"])


def _zsh(commands: list[Command]) -> str:
    def words(values: list[str]) -> str:
        return f"compadd -- {' '.join(values)}"

    lines = [
        f"#compdef {' '.join(_NAMES)}",
        f"# zsh completion of {PROG}: source <({PROG} completion zsh)",
        "_sglang_d_router() {",
        "  local command=serve",
        "  local -a commands=(",
        *(f"    {_quoted(f'{command.name}:{command.summary}')}" for command in commands),
        "  )",
        "  if (( CURRENT > 2 )) && [[ ${words[2]} != -* ]]; then",
        "    command=${words[2]}",
        "  fi",
        '  case "$command ${words[CURRENT-1]}" in',
        *_cases(commands, words, "_files"),
        "  esac",
        "  if (( CURRENT == 2 )) && [[ ${words[CURRENT]} != -* ]]; then",
        "    _describe command commands",
        "    return",
        "  fi",
        '  case "$command" in',
    ]
    for command in commands:
        values = _word_values(command, commands)
        then = _choice(values, "CURRENT - 1", words, "_files")
        flags = words(list(_flags(command))) if not command.raw else ":"
        test = "[[ ${words[CURRENT]} == -* ]]"
        lines.append(f"    {command.name}) if {test}; then {flags}; else {then}; fi ;;")
    return "\n".join([*lines, "  esac", "}", f"compdef _sglang_d_router {' '.join(_NAMES)}\n"])


def _fish(commands: list[Command]) -> str:
    lines = [f"# fish completion of {PROG}: {PROG} completion fish | source"]
    others = " ".join(command.name for command in commands if command.name != "serve")
    for name in _NAMES:
        start = f"complete -c {name}"
        lines.append(f"{start} -f")
        for command in commands:
            summary = _quoted(command.summary)
            lines.append(f"{start} -n __fish_use_subcommand -a {command.name} -d {summary}")
        for command in commands:
            seen = f"__fish_seen_subcommand_from {command.name}"
            if command.name == "serve":
                seen = f"not __fish_seen_subcommand_from {others}"
            given = f"{start} -n '{seen}'"
            for values in _word_values(command, commands):
                if values is not None:
                    words = _quoted(" ".join(values))
                    lines.append(f"{given} -a {words}" if values else f"{given} -F")
            lines += [f"{given} {_fish_flag(setting)}" for setting in _settings(command)]
            if not command.raw:
                lines += [
                    f"{given} -l {long[2:]} -s {short[1:]} -d {_quoted(what)}"
                    for long, short, what in _ALWAYS
                ]
    return "\n".join(lines) + "\n"


def _fish_flag(setting: Setting) -> str:
    parts = [f"-l {setting.flag[2:]}", *[f"-s {setting.short[1:]}"] * bool(setting.short)]
    if not setting.is_switch:
        values = _values(setting)
        if values is None:
            parts.append("-x")
        else:
            parts.append(f"-x -a {_quoted(' '.join(values))}" if values else "-r -F")
    return " ".join([*parts, f"-d {_quoted(setting.help)}"])


def _quoted(text: str) -> str:
    """In single quotes, for zsh and fish alike."""
    return "'" + text.replace("\\", "").replace("'", "'\\''") + "'"


_SHELLS = {"bash": _bash, "zsh": _zsh, "fish": _fish}
