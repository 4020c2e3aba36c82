"""What the demo shows: plain lines, and one line that moves while something is awaited."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.live import Live
from rich.text import Text


class Screen:
    """Writes to standard output. On anything but a terminal the moving line becomes few lines."""

    def __init__(self, *, verbose: bool = False) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        # Log lines on standard error would tear a line that is redrawn.
        self._moves = self._console.is_terminal and not verbose

    def say(self, text: str) -> None:
        """Print a line as it is, if anybody is left to read it."""
        with suppress(OSError):  # the terminal was closed
            self._console.print(text, markup=False)

    @contextmanager
    def progress(self) -> Iterator[Callable[[str], None]]:
        """A function that shows what is being waited for; each call replaces the last."""
        if not self._moves:
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
