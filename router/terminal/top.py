"""`top`: the pool as it changes, on the whole terminal."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import trio
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from ..text import one_line
from . import tables
from .client import Refused, connected
from .flags import Asking
from .pool import Fields, Pool, follow

_TICK = 1.0  # seconds between two pictures when nothing changes: elapsed times go on
_BAR = 8  # most characters of a bar of slots
_MOST = 5  # lines of waiting groups and refits each


async def watch(settings: Asking) -> int:
    """Show the pool until q or Ctrl-C; the exit status."""
    console = Console(highlight=False)
    if not (console.is_terminal and sys.stdin.isatty()):
        raise Refused("top needs a terminal; status and workers print the same once")
    pool, changed = Pool(), _Bell()
    async with connected(settings) as client:
        with _keys() as keyboard:
            async with trio.open_nursery() as nursery:
                # Before the terminal changes: what cannot be reached is told as a plain sentence.
                nursery.start_soon(follow, client, pool, changed.ring)
                nursery.start_soon(_until_end, keyboard, changed, nursery.cancel_scope)
                while not pool.document:
                    await changed.rung()
                await _draw(pool, client.url, console, changed)
    return 0


async def _draw(pool: Pool, url: str, console: Console, changed: _Bell) -> None:
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(frame(pool, url, console.height), refresh=True)
            with trio.move_on_after(_TICK):
                await changed.rung()


class _Bell:
    """Wakes one task."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def ring(self) -> None:
        self._event.set()

    async def rung(self) -> None:
        await self._event.wait()
        self._event = trio.Event()


async def _until_end(keyboard: int | None, changed: _Bell, scope: trio.CancelScope) -> None:
    """Cancel the scope at q or a signal; a new size of the terminal only makes a new picture."""

    async def read_keys() -> None:
        assert keyboard is not None
        while True:
            await trio.lowlevel.wait_readable(keyboard)
            if (typed := os.read(keyboard, 64)) in (b"", b"\x04") or b"q" in typed.lower():
                scope.cancel()

    resized = getattr(signal, "SIGWINCH", None)
    ending = [signal.SIGINT, signal.SIGTERM, *filter(None, [getattr(signal, "SIGHUP", None)])]
    with trio.open_signal_receiver(*ending, *filter(None, [resized])) as signals:
        async with trio.open_nursery() as nursery:
            if keyboard is not None:
                nursery.start_soon(read_keys)
            async for number in signals:
                if number == resized:
                    changed.ring()
                else:
                    scope.cancel()


@contextmanager
def _keys() -> Iterator[int | None]:
    """The keyboard without echo, each key at once; None where that cannot be had."""
    try:
        import termios
        import tty
    except ImportError:  # Windows: Ctrl-C is left
        yield None
        return
    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    try:
        tty.setcbreak(keyboard)
        yield keyboard
    finally:
        with suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


def frame(pool: Pool, url: str, height: int) -> RenderableType:
    """One picture, of at most `height` lines if names are short."""
    parts: list[RenderableType] = [_head(pool, url), Text()]
    below = [*_waiting(pool), *_refits(pool)]
    found = list(pool.workers.values())
    room = max(height - len(below) - (6 if pool.trouble is None else 7), 1)
    parts.append(_workers(found[:room], pool.now))
    if len(found) > room:
        parts.append(Text(f"... and {len(found) - room} more workers", "dim"))
    parts += below
    parts.append(Text("q: quit", "dim"))
    return Group(*parts)


def _head(pool: Pool, url: str) -> Text:
    health, queue = pool.document.get("health", {}), pool.document.get("queue", {})
    ready = health.get("status") == "healthy"
    done, errors, p50, p99 = pool.last_minute()
    head = Text(overflow="ellipsis", no_wrap=True)
    head.append(f"{url}  ")
    head.append("ready" if ready else "not ready", "green" if ready else "red")
    head.append(f"  workers {health.get('healthy_workers', 0)}/{health.get('total_workers', 0)}")
    head.append(f"  waiting {tables.say(queue.get('waiting'))}")
    if queue.get("waiting"):
        head.append(f" ({tables.span(queue.get('oldest_wait_seconds'))})")
    head.append(f"\nlast minute: {done} done")
    head.append(f", {errors} failed", "red" if errors else "")
    head.append(f"  p50 {tables.span(p50)}  p99 {tables.span(p99)}")
    if pool.trouble is not None:
        head.append(f"\n{one_line(pool.trouble)}; trying again", "red")
    return head


def _workers(found: list[Fields], now: float) -> RenderableType:
    if not found:
        return Text("no workers", "yellow")
    rows = [
        (
            tables.name_of(one),
            tables.state(one),
            _slots(one),
            _doing(one, now),
            tables.say(one.get("weight_version")),
            tables.say(one.get("models")),
        )
        for one in found
    ]
    columns = ("NAME", "STATE", "SLOTS", "NOW", "WEIGHTS", "MODEL")
    return tables.table(*columns, right=("WEIGHTS",), fold=False, rows=rows)


def _slots(worker: Fields) -> Text:
    used, most = worker.get("slots_in_use") or 0, worker.get("max_concurrency") or 1
    if most > _BAR:
        return Text(f"{used}/{most}", "cyan" if used else "")
    return Text("#" * min(used, most), "cyan") + Text("." * max(most - used, 0), "dim")


def _doing(worker: Fields, now: float) -> Text:
    work = worker.get("work") or []
    if not work:
        return Text(tables.NONE, "dim")
    first: dict[str, Any] = work[0]
    what = tables.say(first.get("endpoint")).rpartition("/")[2] or tables.say(first.get("kind"))
    began, expected = first.get("began"), first.get("expected_seconds")
    taken = tables.span(now - began) if began is not None else "waits"
    of = f" of {tables.span(expected)}" if expected is not None else ""
    late = began is not None and expected is not None and now - began > 2 * expected + 1
    return Text(f"{what} {taken}{of}", "yellow" if late else "")


def _waiting(pool: Pool) -> list[Text]:
    groups = pool.document.get("queue", {}).get("groups") or []
    lines = [
        Text(
            f"waiting: {tables.say(one.get('waiting'))}"
            f" {tables.say(one.get('task'))} {tables.say(one.get('model'))}"
            f" of {tables.say(one.get('client'))},"
            f" the oldest for {tables.span(one.get('oldest_wait_seconds'))}",
            no_wrap=True,
            overflow="ellipsis",
        )
        for one in groups[:_MOST]
    ]
    return [Text(), *lines] if lines else []


def _refits(pool: Pool) -> list[Text]:
    lines = [
        Text(
            f"refit of {tables.say(one.get('model'))} on {tables.say(one.get('workers'))} workers"
            f" for {tables.span(pool.now - (one.get('began') or pool.now))}",
            "cyan",
            no_wrap=True,
            overflow="ellipsis",
        )
        for one in pool.document.get("refits") or []
        if one.get("ended") is None
    ]
    return [Text(), *lines[:_MOST]] if lines else []
