"""What a command shows: lines, tables, and one line that moves while something is awaited."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

_PLAIN = 80  # columns where there is no terminal


class Screen:
    """Writes to standard output. On anything but a terminal the moving line becomes few lines, and
    tables have always the same width. `NO_COLOR` is obeyed."""

    def __init__(self, *, verbose: bool = False) -> None:
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="replace")  # names may be what the terminal cannot show
        self._console = Console(highlight=False, soft_wrap=True)
        self._width = self._console.width if self._console.is_terminal else _PLAIN
        # Log lines on standard error would tear a line that is redrawn.
        self.moves = self._console.is_terminal and not verbose

    def say(self, text: str) -> None:
        """Print a line as it is, if anybody is left to read it."""
        with suppress(OSError):  # the terminal was closed
            self._console.print(text, markup=False)

    def show(self, part: Any) -> None:
        """Print a table or a text, without blanks at the ends of lines."""
        if isinstance(part, str):
            self.say(part)
            return
        with self._console.capture() as capture:
            self._console.print(part, width=self._width, soft_wrap=False)
        for line in capture.get().splitlines():
            print(line.rstrip())

    def json(self, document: Any) -> None:
        """Print JSON for programs."""
        print(json.dumps(document, indent=2))

    @contextmanager
    def progress(self) -> Iterator[Callable[[str], None]]:
        """A function that shows what is being waited for; each call replaces the last."""
        if not self.moves:
            yield self._say_changes()
            return
        # Redrawn by us: rich's own refreshing would be a thread beside trio's.
        with Live(console=self._console, auto_refresh=False, transient=True) as live:

            def show(text: str) -> None:
                live.update(Text(text, style="dim"), refresh=True)

            yield show

    def _say_changes(self) -> Callable[[str], None]:
        last = ""

        def show(text: str) -> None:
            nonlocal last
            what = text.partition(" (")[0]  # without the seconds
            if what != last:
                last = what
                self.say(what)

        return show
