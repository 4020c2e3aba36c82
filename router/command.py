"""One command of the command line, as `main`, help and completion see it."""

from __future__ import annotations

from collections.abc import Callable

from attrs import frozen


@frozen
class Command:
    """A command. Help and completion come from what it says about itself.

    `words` names the arguments that are no flags: `NAME`, `[NAME]` if it may be left out, `NAME...`
    if there may be several, `a|b` for a choice. `flags` gives the class of its settings.
    """

    name: str
    summary: str  # its line in the list of commands
    run: Callable[[list[str]], int]  # takes the arguments after the name
    words: tuple[str, ...] = ()
    usage: tuple[str, ...] = ()  # what may follow the name, if `words` cannot say it
    about: str = ""
    flags: Callable[[], type] | None = None
    config: bool = False  # whether `--config FILE` is a flag, too
    entries: tuple[tuple[str, str], ...] = ()  # of the help, after the flags
    notes: str = ""
    examples: tuple[str, ...] = ()
    status: str = ""  # its exit statuses
    raw: bool = False  # it reads `--help` and `--version` itself
