"""The access log: what a line says, which exchanges get one, and how many at most."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from router.bus import Bus
from router.front.record import ExchangeEnded, ExchangeRecord
from router.observe.access import MOST, AccessLines

IMAGES = "/v1/images/generations"


@pytest.fixture(autouse=True)
def _level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "router.access")


def run(main: Callable[[AccessLines], Awaitable[None]]) -> None:
    async def within() -> None:
        lines = AccessLines(Bus())
        lines.switch(on=True)
        async with trio.open_nursery() as nursery:
            await nursery.start(lines.run)
            await main(lines)
            nursery.cancel_scope.cancel()

    trio.run(within, clock=trio.testing.MockClock(autojump_threshold=0))


def ended(lines: AccessLines, path: str = IMAGES, status: int | None = 200) -> None:
    record = ExchangeRecord("r1", "POST", path)
    record.status, record.ended = status, trio.current_time()
    lines.bus.publish(ExchangeEnded(record))


def test_a_line_says_what_and_how_long(caplog: pytest.LogCaptureFixture) -> None:
    record = ExchangeRecord("r1", "POST", f"{IMAGES}\n", arrived=10.0)
    record.leased, record.answered, record.ended = 10.25, 14.25, 14.5
    record.status, record.received, record.sent = 200, 96, 81_530
    record.worker, record.client, record.model, record.tries = "http://w:1", "trainer", "flux", 2
    AccessLines(Bus()).note(ExchangeEnded(record))
    record.worker = record.leased = record.status = record.answered = None
    record.code, record.prompt = "client_gone", "a cat"
    AccessLines(Bus()).note(ExchangeEnded(record))
    first, second = caplog.records
    assert first.getMessage() == (
        f"POST {IMAGES}\\n 200 in 4.500 s (queue 0.250, worker 4.000, transfer 0.250),"
        " 96 B in, 81530 B out, http://w:1, client trainer"
    )
    said = vars(first)
    assert said["request_id"] == "r1"
    assert (said["queue_seconds"], said["worker_seconds"], said["transfer_seconds"]) == (
        *(0.25, 4.0),
        0.25,
    )
    assert (said["seconds"], said["tries"], said["model"]) == (4.5, 2, "flux")
    assert second.getMessage() == (
        f"POST {IMAGES}\\n without an answer in 4.500 s, 96 B in, 81530 B out, client trainer,"
        " prompt 'a cat'"
    )


def test_probes_get_no_line(caplog: pytest.LogCaptureFixture) -> None:
    async def main(lines: AccessLines) -> None:
        for path in ("/health", "/ready", "/live", "/metrics", "/engine_metrics", "/readiness"):
            ended(lines, path)
            ended(lines, path, 503)
        await trio.sleep(2)

    run(main)
    assert not caplog.records


def test_a_second_has_so_many_lines_and_the_rest_is_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main(lines: AccessLines) -> None:
        for _ in range(MOST + 30):
            ended(lines)
        for status in (404, 503, None):
            ended(lines, status=status)
        assert len(caplog.records) == MOST + 3  # errors have a bound of their own
        for _ in range(2 * MOST):
            ended(lines, status=500)
        assert len(caplog.records) == 2 * MOST
        await trio.sleep(0.5)
        assert len(caplog.records) == 2 * MOST
        await trio.sleep(0.6)
        [*_, told] = caplog.records
        assert told.getMessage() == (
            f"30 requests and {MOST + 3} errors of one second are left out of this log"
        )
        await trio.sleep(10)
        assert len(caplog.records) == 2 * MOST + 1
        ended(lines)
        assert len(caplog.records) == 2 * MOST + 2
        for _ in range(MOST + 3):  # the end of the router tells as well
            ended(lines)

    run(main)
    assert "4 requests and 0 errors" in caplog.records[-1].getMessage()


def test_it_can_be_switched(caplog: pytest.LogCaptureFixture) -> None:
    async def main(lines: AccessLines) -> None:
        for on in (True, False, False, True):
            lines.switch(on=on)
            ended(lines)

    run(main)
    assert len(caplog.records) == 2
