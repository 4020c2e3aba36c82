"""The pictures of `top`, and the document behind them."""

from __future__ import annotations

import io
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any

import trio
import trio.testing
from rich.console import Console

from router.terminal.pool import Pool
from router.terminal.top import frame


def on_time(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """Run a test on trio, in which only sleeping takes time."""

    @wraps(test)
    def run() -> None:
        trio.run(test, clock=trio.testing.MockClock(autojump_threshold=0))

    return run


def snapshot(count: int = 2, **more: Any) -> dict[str, Any]:
    workers = [
        {
            "worker_id": f"w{number}",
            "name": f"image-{number}",
            "routable": True,
            "slots_in_use": 1,
            "max_concurrency": 2,
            "models": ["demo/" + "x" * 100],
            "work": [{"endpoint": "video", "began": 90.0, "expected_seconds": 4.0}],
        }
        for number in range(count)
    ]
    steps = [[1, 3, 0, 0, 9.0, 9.0], [7, 1, 1, 0, 0.5, 2.0], [8, 2, 0, 5, None, None]]
    return {
        "now": 100.0,
        "workers": workers,
        "health": {"status": "healthy", "healthy_workers": count, "total_workers": count},
        "queue": {"waiting": 0, "groups": []},
        "series": {"last": 8, "steps": steps},
        **more,
    }


def picture(pool: Pool, width: int, height: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height)
    console.print(frame(pool, "http://127.0.0.1:30080", height))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@on_time
async def test_a_document_is_kept_up_to_date() -> None:
    pool = Pool()
    pool.apply("snapshot", snapshot())
    assert pool.last_minute() == (3, 1, 0.5, 2.0)
    await trio.sleep(5)
    assert pool.now == 105
    pool.apply("change", {"now": 106.0, "workers": {"w0": None, "w1": {"routable": False}}})
    assert pool.now == 106
    assert [*pool.workers] == ["w1"]
    assert pool.workers["w1"]["name"] == "image-1"
    assert not pool.workers["w1"]["routable"]
    pool.apply("change", {"series": {"last": 9, "steps": [[8, 4, 0, 0, 1.0, 1.0]]}})
    assert pool.last_minute() == (5, 1, 1.0, 1.0)
    pool.apply("snapshot", snapshot(1, series={"last": 8, "steps": []}))
    assert pool.last_minute() == (0, 0, None, None)
    assert [*pool.workers] == ["w0"]


@on_time
async def test_a_picture() -> None:
    pool = Pool()
    queue = {
        "waiting": 9,
        "oldest_wait_seconds": 3,
        "groups": [{"waiting": 9, "task": "image", "client": "alice", "oldest_wait_seconds": 3}],
    }
    refits = [{"model": "m", "workers": 2, "began": 40.0, "ended": None}, {"ended": 1.0}]
    pool.apply("snapshot", snapshot(queue=queue, refits=refits))
    lines = [line.rstrip() for line in picture(pool, 80, 24)]
    assert lines[0] == "http://127.0.0.1:30080  ready  workers 2/2  waiting 9 (3.0s)"
    assert lines[1] == "last minute: 3 done, 1 failed  p50 0.50s  p99 2.0s"
    assert lines[4].startswith("image-0  ready  #.     video 10s of 4.0s")
    assert "waiting: 9 image - of alice, the oldest for 3.0s" in lines
    assert "refit of m on 2 workers for 1m00s" in lines
    assert lines[-1] == "q: quit"
    pool.trouble = "No router answers\x1b[2J"
    assert picture(pool, 80, 24)[2].rstrip() == "No router answers\\x1b[2J; trying again"


@on_time
async def test_a_picture_fits_any_terminal() -> None:
    pool = Pool()
    pool.apply("snapshot", snapshot(200))
    for width, height in ((80, 24), (120, 10), (60, 30)):
        lines = picture(pool, width, height)
        assert len(lines) <= height
        assert max(map(len, lines)) <= width
        assert "more workers" in lines[-2]
    assert len(picture(Pool(), 80, 24)) < 10
