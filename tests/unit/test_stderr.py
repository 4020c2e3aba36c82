"""Writing to standard error never stops the event loop, whoever reads it or does not."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator
from typing import TextIO, cast

import pytest
import trio
import trio.testing
from attrs import define

from router.observe import stderr
from router.observe.stderr import MOST_BYTES, Output

pytestmark = pytest.mark.skipif(os.name != "posix", reason="fills POSIX pipes")


@define
class Pipe:
    output: Output
    reader: int
    writer: int

    async def read(self, enough: Callable[[str], bool]) -> str:
        """Read until there is enough."""
        data = b""
        while not enough(data.decode()):
            await trio.lowlevel.wait_readable(self.reader)
            data += os.read(self.reader, 65536)
        return data.decode()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    reader, writer = os.pipe()
    stream = os.fdopen(writer, "w")
    yield Pipe(Output(lambda count: f"({count} lost)\n", stream), reader, writer)
    os.close(reader)
    stream.close()


def lines(count: int) -> list[str]:
    return [f"line {number:06} {'x' * 80}\n" for number in range(count)]


def run(main: Callable[[], object]) -> None:
    async def within() -> None:
        with trio.fail_after(20):
            await main()  # type: ignore[misc]

    trio.run(within)


def test_what_is_written_comes_out_in_order(pipe: Pipe) -> None:
    wanted = lines(5000)  # several times what the pipe holds

    async def main() -> None:
        async with pipe.output.aside():
            for line in wanted:
                pipe.output.write(line)
            assert await pipe.read(lambda text: text.count("\n") >= 5000) == "".join(wanted)
            pipe.output.write("later\n")
            assert await pipe.read(lambda text: text.endswith("\n")) == "later\n"

    run(main)


def test_threads_are_heard_too(pipe: Pipe) -> None:
    async def main() -> None:
        async with pipe.output.aside():
            await trio.testing.wait_all_tasks_blocked()
            await trio.to_thread.run_sync(pipe.output.write, "from a thread\n")
            assert await pipe.read(lambda text: "\n" in text) == "from a thread\n"

    run(main)


def test_a_pipe_that_nobody_reads_stops_nobody_and_what_it_lost_is_said(pipe: Pipe) -> None:
    wanted = lines(3 * MOST_BYTES // 80)

    async def main() -> None:
        async with pipe.output.aside():
            begun = time.monotonic()
            for line in wanted:
                pipe.output.write(line)
                await trio.lowlevel.checkpoint()
            assert time.monotonic() - begun < 10
            assert len(pipe.output._waiting) < MOST_BYTES + 1000
            text = await pipe.read(lambda text: "lost)\n" in text)
            kept = text.splitlines(keepends=True)
            assert kept[:-1] == wanted[: len(kept) - 1]  # the first ones, with no hole
            assert kept[-1] == f"({len(wanted) - len(kept) + 1} lost)\n"
            pipe.output.write("after\n")
            assert await pipe.read(lambda text: "\n" in text) == "after\n"

    run(main)


def test_the_notice_stands_where_the_lines_are_missing(pipe: Pipe) -> None:
    line, *others = lines(2 * MOST_BYTES // 80)

    async def main() -> None:
        async with pipe.output.aside():
            for each in others:
                pipe.output.write(each)
                await trio.lowlevel.checkpoint()
            # There is room again, but not all has come out yet.
            with trio.move_on_after(20):
                while len(pipe.output._waiting) >= MOST_BYTES:
                    await trio.lowlevel.wait_readable(pipe.reader)
                    os.read(pipe.reader, 65536)
            pipe.output.write(line)
            text = await pipe.read(lambda text: line in text)
            assert text.splitlines()[-2].endswith("lost)")

    run(main)


def test_what_waits_at_the_end_is_still_written(pipe: Pipe) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            read: list[str] = []

            async def late() -> None:
                await trio.sleep(0.2)
                read.append(await pipe.read(lambda text: text.count("\n") >= 2000))

            nursery.start_soon(late)
            with pytest.RaisesGroup(KeyError):
                async with pipe.output.aside():
                    for line in lines(2000):
                        pipe.output.write(line)
                    raise KeyError
        assert read == ["".join(lines(2000))]
        pipe.output.write("and directly\n")
        assert os.read(pipe.reader, 100) == b"and directly\n"

    run(main)


def test_a_stuck_pipe_delays_the_end_by_a_moment(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stderr, "_LAST_WORDS", 0.2)

    async def main() -> None:
        async with pipe.output.aside():
            for line in lines(2000):
                pipe.output.write(line)
        begun = time.monotonic()
        os.write(pipe.writer, b"x" * MOST_BYTES)  # as Python writes a traceback
        assert time.monotonic() - begun < 10

    run(main)


def test_outside_of_the_loop_a_full_pipe_is_waited_for_a_moment_only(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stderr, "_LAST_WORDS", 0.05)
    pipe.output.write("first\n")
    begun = time.monotonic()
    pipe.output.write("y" * MOST_BYTES)
    assert time.monotonic() - begun < 5
    assert os.read(pipe.reader, 6) == b"first\n"


def test_a_pipe_whose_reader_has_gone_is_no_trouble(pipe: Pipe) -> None:
    async def main() -> None:
        os.dup2(os.open(os.devnull, os.O_RDONLY), pipe.reader)  # so it is closed
        async with pipe.output.aside():
            for line in lines(3):
                pipe.output.write(line)
                await trio.sleep(0.01)
        pipe.output.write("directly\n")

    run(main)


def test_a_pipe_that_others_have_made_nonblocking_loses_nothing(pipe: Pipe) -> None:
    os.set_blocking(pipe.writer, False)

    async def main() -> None:
        async with pipe.output.aside():
            for line in lines(3000):
                pipe.output.write(line)
            await trio.sleep(0.1)
            text = await pipe.read(lambda text: text.count("\n") >= 3000)
            assert text == "".join(lines(3000))

    run(main)


@pytest.mark.parametrize("stream", [None, io.StringIO()])
def test_streams_without_a_descriptor(stream: TextIO | None) -> None:
    output = Output(str, stream)

    async def main() -> None:
        async with output.aside():
            output.write("a\n")

    run(main)
    if stream is not None:
        assert cast(io.StringIO, stream).getvalue() == "a\n"
    assert not output.isatty()
    with pytest.raises(OSError, match="fileno"):
        output.fileno()
