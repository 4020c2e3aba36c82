"""The command line: argv to one command of the table. Nothing else parses flags.

Each command imports what it needs when it runs, so that `--help`, `--version` and the children of
`demo` start at once.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence

from . import commands, init, terminal
from .command import Command
from .errors import Problem, SettingsError, StartError
from .program import PROG

EXIT_OK = 0
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: that of the process) and return its exit status.

    0: done. 2: wrong flags or settings, all of them told on stderr. 130: interrupted before the
    service took over. Others are those of the command; 1 is a failure.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = "serve"
    try:
        if arguments and not arguments[0].startswith("-"):
            name = arguments.pop(0)
            if name not in COMMANDS:
                raise SettingsError([_unknown_command(name)])
        elif _asks_for(arguments, "--help", "-h"):
            return _show(_overview())
        command = COMMANDS[name]
        if not command.raw and _asks_for(arguments, "--version", "-V"):
            return _version([])
        if not command.raw and _asks_for(arguments, "--help", "-h"):
            return _help([name])
        if name in _LASTING and init.needed() and (status := init.run()) is not None:
            return status
        status = command.run(arguments)
        if sys.stdout is not None:
            sys.stdout.flush()  # here a reader that has left is no error
        return status
    except SettingsError as error:
        for problem in error.problems:
            _complain(str(problem))
        known = f" {name}" if name in COMMANDS else ""
        print(f"Try '{PROG}{known} --help'.", file=sys.stderr)
        return EXIT_USAGE
    except StartError as error:
        _complain(str(error))
        return error.status
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output has enough; nothing is to be flushed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _help(arguments: list[str]) -> int:
    """The help of one command, or of all."""
    from .settings import command_help

    match arguments:
        case []:
            return _show(_overview())
        case [name] if name in COMMANDS:
            command = COMMANDS[name]
            return (
                command.run(["--help"]) if command.raw else _show(command_help(command, _width()))
            )
        case [name]:
            raise SettingsError([_unknown_command(name)])
    raise SettingsError([Problem(arguments[1], "unexpected argument")])


def _completion(arguments: list[str]) -> int:
    from .commands import completion

    return _show(completion.script(arguments, COMMANDS.values()))


def _version(arguments: list[str]) -> int:
    from .commands import version

    if arguments:
        raise SettingsError([Problem(arguments[0], "unexpected argument")])
    return _show(version.text())


_LASTING = ("serve", "demo")  # they start other processes
COMMANDS = {
    command.name: command
    for command in (
        *commands.COMMANDS,
        *terminal.COMMANDS,
        Command(
            "completion",
            "print a script with which a shell completes commands and flags",
            _completion,
            ("bash|zsh|fish",),
            about="Print a script with which a shell completes commands, flags and values.",
            examples=(
                f"source <({PROG} completion bash)",
                f"source <({PROG} completion zsh)",
                f"{PROG} completion fish | source",
            ),
        ),
        Command("help", "print the help of a command", _help, ("[COMMAND]",)),
        Command("version", "print the versions of the program, Python and packages", _version),
    )
}


def _overview() -> str:
    from .settings import command_details, entry

    width = _width()
    return (
        f"Usage: {PROG} [serve] [flags]\n"
        f"       {PROG} COMMAND ...\n\n"
        "A router in front of SGLang diffusion workers: image, video and mesh generation.\n\n"
        "Commands:\n"
        + "".join(entry(command.name, command.summary, width) for command in COMMANDS.values())
        + "\n"
        + command_details(COMMANDS["serve"], width)
    )


def _unknown_command(name: str) -> Problem:
    from .settings.kinds import did_you_mean

    hint = did_you_mean(name, list(COMMANDS))
    return Problem(name, f"unknown command{hint}")


def _asks_for(arguments: Sequence[str], *flags: str) -> bool:
    return any(argument in flags for argument in arguments)


def _show(text: str) -> int:
    print(text, end="")
    return EXIT_OK


def _complain(sentence: str) -> None:
    print(f"{PROG}: error: {sentence}", file=sys.stderr)


def _width() -> int:
    return min(shutil.get_terminal_size().columns, 100)
