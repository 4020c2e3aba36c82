"""The progress of starting workers: a line for each on a terminal, else lines in the log."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO, cast

import trio

from ..observe import logs
from ..observe.stderr import Output
from .phases import Phase, SlotView

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

logger = logging.getLogger("router.launch")

_TICK = 0.5  # seconds between two frames, so that elapsed times move
_STYLES = {
    Phase.READY: "green",
    Phase.RESTARTING: "yellow",
    Phase.DOWN: "yellow",
    Phase.EXITED: "red",
    Phase.FAILED: "red",
}
_ON_THE_WAY = (Phase.QUEUED, Phase.STARTING, Phase.RESTARTING)
_NO_TEXT = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|[\x00-\x1f\x7f-\x9f]"
)

Views = Callable[[], Sequence[SlotView]]
Changed = Callable[[], Awaitable[None]]


async def show(views: Views, changed: Changed, *, console: Console | None = None) -> None:
    """Show how workers start, until none of them is starting any more.

    `changed` waits until one of them has changed. Without `console`, standard error decides: a line
    per worker if it is a terminal, else a line per change.
    """
    if not views():
        return
    output = _terminal() if console is None else None
    if output is not None:
        from rich.console import Console

        console = Console(file=cast(TextIO, output), highlight=False, soft_wrap=True)
    if console is not None:
        with _drawing(console) as draw:
            await _follow(views, changed, draw, _TICK)
    else:
        await _follow(views, changed, _Lines().tell, None)


async def _follow(
    views: Views, changed: Changed, tell: Callable[[Sequence[SlotView]], None], tick: float | None
) -> None:
    while True:
        seen = views()
        tell(seen)
        if not any(view.phase in _ON_THE_WAY for view in seen):
            return
        with trio.move_on_after(float("inf") if tick is None else tick):
            await changed()  # no await since `views`: no change is missed


def summary(views: Sequence[SlotView]) -> str:
    """`3 of 8 workers are ready, 4 starting, 1 failed`."""
    phases = Counter(view.phase for view in views)
    ready = phases.pop(Phase.READY, 0)
    rest = [f"{phases[phase]} {phase.value}" for phase in Phase if phases[phase]]
    verb = "is" if len(views) == 1 else "are"
    noun = "worker" if len(views) == 1 else "workers"
    return ", ".join([f"{ready} of {len(views)} {noun} {verb} ready", *rest])


class _Lines:
    """Logs one line whenever the summary changes. The log already has each worker's own steps."""

    def __init__(self) -> None:
        self._last = ""

    def tell(self, views: Sequence[SlotView]) -> None:
        words = summary(views)
        if words != self._last:
            self._last = words
            logger.info("%s", words)


def _terminal() -> Output | None:
    """The log's stream if it is a terminal."""
    # Not rich's answer: with FORCE_COLOR rich takes any stream for a terminal.
    for handler in logs.handlers():
        if isinstance(handler.formatter, logs.JsonFormatter):
            return None
        if handler.stream.isatty() and os.environ.get("TERM") != "dumb":
            return handler.stream
    return None


@contextmanager
def _drawing(console: Console) -> Iterator[Callable[[Sequence[SlotView]], None]]:
    """Yields a function that redraws the lines. Meanwhile the log goes above them."""
    from rich.live import Live

    before = [(handler, handler.stream) for handler in logs.handlers()]
    # We redraw: rich's own refreshing would need a thread beside trio's.
    with Live(console=console, auto_refresh=False, redirect_stdout=False) as live:
        try:
            for handler, _ in before:
                handler.setStream(cast(Output, sys.stderr))  # rich has replaced it
            yield lambda views: live.update(
                table(views, trio.current_time(), console.height), refresh=True
            )
        finally:
            for handler, output in before:
                handler.setStream(output)


def table(views: Sequence[SlotView], now: float, height: int) -> Table:
    """The lines of all workers. If there are too many for the screen, starting workers come first
    and the rest is counted."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2), expand=True)
    for column in range(4):
        last = column == 3
        grid.add_column(no_wrap=True, overflow="ellipsis", ratio=1 if last else None)
    shown = list(views)
    room = max(height - 3, 1)  # a line for the sum, one for the rest, one for the cursor
    if len(shown) > room:
        shown.sort(key=lambda view: view.phase not in _ON_THE_WAY)
    for view in shown[:room]:
        grid.add_row(
            Text(view.name),
            Text(view.phase.value, style=_STYLES.get(view.phase, "")),
            Text(elapsed(now - view.since) if view.phase in _ON_THE_WAY else "", style="dim"),
            Text(_words(view), style="dim"),
        )
    if len(shown) > room:
        grid.add_row(Text(f"and {len(shown) - room} more", style="dim"))
    outer = Table.grid(expand=True)
    outer.add_row(grid)
    outer.add_row(Text(summary(views)))
    return outer


def _words(view: SlotView) -> str:
    last = view.last_line if view.phase in _ON_THE_WAY else None
    words = " | ".join(filter(None, (view.detail, last)))
    return _NO_TEXT.sub(" ", words).strip()


def elapsed(seconds: float) -> str:
    """`7 s`, `3 min 20 s`, `1 h 5 min`."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
