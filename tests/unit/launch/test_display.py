"""What is shown while workers start, on a terminal and elsewhere."""

from __future__ import annotations

import io
import logging
import os
import re
import sys
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing
from attrs import define, field
from rich.console import Console

from router.launch import display
from router.launch.display import elapsed, show, summary
from router.launch.phases import Phase, SlotView
from router.observe import logs


@define
class Workers:
    """Stands in for the fleet."""

    seen: list[SlotView] = field(factory=list)
    event: trio.Event = field(factory=trio.Event)

    def views(self) -> list[SlotView]:
        return list(self.seen)

    async def changed(self) -> None:
        await self.event.wait()

    def put(self, index: int, phase: Phase, **values: Any) -> None:
        view = SlotView(f"image-{index}", "image", index, phase, trio.current_time(), **values)
        self.seen[index : index + 1] = [view]
        self.event.set()
        self.event = trio.Event()


def run(script: Callable[[Workers], Any], console: Console | None = None) -> None:
    """Show what the script makes of workers; both have to end."""

    async def main() -> None:
        workers = Workers()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(script, workers)
            await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(60):
                await show(workers.views, workers.changed, console=console)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def terminal(height: int = 20) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return (
        Console(
            file=stream,
            force_terminal=True,
            width=80,
            height=height,
            soft_wrap=True,
            color_system=None,
        ),
        stream,
    )


def frames(stream: io.StringIO) -> list[str]:
    """What was drawn, one after the other, without the moving of the cursor."""
    drawn = re.split(r"(?:\r?\x1b\[2K(?:\x1b\[1A)?)+", stream.getvalue())
    return [re.sub(r"\x1b\[[?0-9;]*[a-z]", "", frame, flags=re.I) for frame in drawn]


def test_the_last_frame_stays() -> None:
    console, stream = terminal()

    async def script(workers: Workers) -> None:
        workers.put(0, Phase.STARTING, last_line="Loading \x1b[31mshards\x1b[0m\t1/9")
        workers.put(1, Phase.QUEUED)
        await trio.sleep(7.2)
        workers.put(0, Phase.READY)
        await trio.sleep(1)
        workers.put(1, Phase.FAILED, detail="given up: exited with status 1")

    run(script, console)
    drawn = frames(stream)
    assert any(re.search(r"image-0  starting  7 s  Loading +shards +1/9", each) for each in drawn)
    assert "\x1b[31m" not in stream.getvalue(), "of a worker, and not for our terminal"
    lines = [line.rstrip() for line in drawn[-1].splitlines()]
    assert re.fullmatch(r"image-0  ready", lines[0])
    assert re.fullmatch(r"image-1  failed +given up: exited with status 1", lines[1])
    assert lines[2] == "1 of 2 workers are ready, 1 failed"


def test_a_long_line_is_cut_and_none_wraps() -> None:
    console, stream = terminal()

    async def script(workers: Workers) -> None:
        workers.put(0, Phase.STARTING, last_line="x" * 500)
        await trio.sleep(1)
        workers.put(0, Phase.READY)

    run(script, console)
    assert "xxx…" in stream.getvalue()
    assert all(len(line) <= 80 for frame in frames(stream) for line in frame.splitlines())


def test_too_many_for_the_screen() -> None:
    console, stream = terminal(height=6)

    async def script(workers: Workers) -> None:
        for index in range(9):
            workers.put(index, Phase.READY if index < 7 else Phase.STARTING)
        await trio.sleep(1)
        for index in range(9):
            workers.put(index, Phase.READY)

    run(script, console)
    first = next(frame for frame in frames(stream) if "starting" in frame)
    names = re.findall(r"image-\d", first)
    assert names == ["image-7", "image-8", "image-0"]
    assert "and 6 more" in first
    assert "7 of 9 workers are ready, 2 starting" in first


def test_the_log_goes_above_the_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    root, mine = logging.getLogger(), logging.getLogger("router")
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(mine, "level", logging.INFO)
    output = logs.configure("info")
    console = Console(stderr=True, force_terminal=True, width=80, color_system=None, soft_wrap=True)
    logger = logging.getLogger("router.launch")

    async def script(workers: Workers) -> None:
        workers.put(0, Phase.STARTING)
        await trio.sleep(1)
        logger.info("one line of the log, %s", "long " * 30 + "[bold]end[/bold]")
        await trio.sleep(1)
        workers.put(0, Phase.READY)

    run(script, console)
    (handler,) = root.handlers
    assert isinstance(handler, logging.StreamHandler)
    assert handler.stream is output
    assert sys.stderr is stream
    logger.info("afterwards")
    pieces = frames(stream)
    (place,) = [number for number, piece in enumerate(pieces) if "one line of the log" in piece]
    log, *drawn = pieces[place].splitlines()
    assert log.endswith("long [bold]end[/bold]")
    assert drawn[0].startswith("image-0  starting")
    assert pieces[-1].rstrip().endswith("afterwards")


def test_no_workers_no_display() -> None:
    console, stream = terminal()

    async def script(workers: Workers) -> None:
        pass

    run(script, console)
    assert stream.getvalue() == ""


def test_lines_elsewhere_one_per_change(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    caplog.set_level(logging.INFO, "router.launch")

    async def script(workers: Workers) -> None:
        workers.put(0, Phase.STARTING)
        workers.put(1, Phase.STARTING)
        await trio.sleep(1)
        workers.put(1, Phase.STARTING, last_line="nothing to say")
        await trio.sleep(1)
        workers.put(0, Phase.READY)
        await trio.sleep(1)
        workers.put(1, Phase.EXITED)

    run(script)
    assert [record.getMessage() for record in caplog.records] == [
        "0 of 2 workers are ready, 2 starting",
        "1 of 2 workers are ready, 1 starting",
        "1 of 2 workers are ready, 1 exited",
    ]


@pytest.mark.parametrize(("term", "is_one"), [("xterm", True), ("dumb", False)])
def test_what_counts_as_a_terminal(
    monkeypatch: pytest.MonkeyPatch, term: str, is_one: bool
) -> None:
    master, slave = os.openpty()
    with os.fdopen(slave, "w") as stream, os.fdopen(master, "rb"):
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setenv("TERM", term)
        monkeypatch.setattr(logging.getLogger(), "handlers", [])
        output = logs.configure("info")
        assert display._terminal() is (output if is_one else None)


def test_texts() -> None:
    one = SlotView("a-0", "a", 0, Phase.READY, 0.0)
    assert summary([one]) == "1 of 1 worker is ready"
    assert [elapsed(seconds) for seconds in (0.9, 59.9, 200, 3900)] == [
        "0 s",
        "59 s",
        "3 min 20 s",
        "1 h 5 min",
    ]
