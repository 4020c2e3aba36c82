"""What the tables of the terminal say of the router's JSON, and how wide they are."""

from __future__ import annotations

from typing import Any

import pytest

from router.terminal import tables
from router.terminal.screen import Screen

LONG = "an-organisation-with-a-name/a-model-with-a-very-long-name-and-a-\x1b[31mcolour"


def shown(capsys: pytest.CaptureFixture[str], *parts: Any) -> list[str]:
    screen = Screen()
    for part in parts:
        screen.show(part)
    return capsys.readouterr().out.splitlines()


def worker(**more: Any) -> dict[str, Any]:
    return {
        "url": "http://127.0.0.1:30000",
        "name": "image-0",
        "routable": True,
        "reasons": [],
        "worker_id": "w0",
        "pool": "default",
        "slots_in_use": 1,
        "max_concurrency": 2,
        "outstanding_seconds": 12.3,
        "weight_version": 7,
        "models": ["m"],
        **more,
    }


def test_workers(capsys: pytest.CaptureFixture[str]) -> None:
    late = worker(name="image-1", routable=False, reasons=["asleep", "weights_behind"])
    assert shown(capsys, tables.workers([worker(), late])) == [
        "NAME     STATE                   SLOTS  WORK  WEIGHTS  MODEL",
        "image-0  ready                     1/2   12s        7  m",
        "image-1  asleep, weights_behind    1/2   12s        7  m",
    ]


def test_several_pools_have_a_column(capsys: pytest.CaptureFixture[str]) -> None:
    head, *rows = shown(capsys, tables.workers([worker(), worker(pool="teacher")]))
    assert head.split()[:3] == ["NAME", "POOL", "STATE"]
    assert rows[1].split()[1] == "teacher"


def test_the_queue_shows_priorities(capsys: pytest.CaptureFixture[str]) -> None:
    groups = [{"client": "alice", "priority": "low", "waiting": 3, "oldest_wait_seconds": 4}]
    _, head, row = shown(capsys, *tables.queue({"waiting": 3, "groups": groups}))
    assert head.split()[-3:] == ["PRIORITY", "WAITING", "OLDEST"]
    assert row.split()[3:6] == ["alice", "low", "3"]


@pytest.mark.parametrize(
    "part",
    [
        tables.workers(
            [worker(name=LONG, models=[LONG, LONG], reasons=["x" * 70], routable=False)]
        ),
        tables.worker(worker(name=LONG, launch={"log": "/" + "x" * 200, "pid": 3})),
        tables.queue({"waiting": 3, "groups": [{"model": LONG, "client": LONG, "waiting": 3}]})[1],
        tables.weights(
            [{"model": LONG, "label": LONG, "workers": [{"weights": "failed", "worker_id": LONG}]}],
            {LONG: LONG},
        )[2],
        tables.jobs({"video": [{"id": "x" * 36, "status": "in_progress", "model": LONG}]}, 0),
    ],
)
def test_nothing_is_wider_than_80_columns_or_moves_the_cursor(
    part: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")  # a script's output does not depend on its terminal
    lines = shown(capsys, part)
    assert max(map(len, lines)) <= 80
    assert all(line == line.rstrip() for line in lines)
    assert "\x1b" not in "".join(lines)


def test_missing_fields_are_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    parts = [tables.workers([{}]), tables.worker({}), *tables.queue({"groups": [{}]})]
    parts += [*tables.weights([{}], {}), tables.jobs({"video": [{}]}, 0)]
    parts.append(tables.status({"url": "u", "health": {}, "queue": {}, "weights": [{}]}, False))
    assert "-" in "".join(shown(capsys, *parts))


def test_status(capsys: pytest.CaptureFixture[str]) -> None:
    document = {
        "url": "http://r",
        "health": {"healthy_workers": 1, "total_workers": 3, "sleeping_workers": 2, "state": "ok"},
        "queue": {"waiting": 4, "oldest_wait_seconds": 61},
        "weights": [
            {
                "model": "m",
                "pool": "default",
                "weight_version": 3,
                "label": "step-3",
                "workers": [{"weights": "current"}, {"weights": "behind"}],
            }
        ],
    }
    assert shown(capsys, tables.status(document, True)) == [
        "router   http://r",
        "ready    yes",
        "workers  1 of 3 ready, 2 asleep",
        "waiting  4, the oldest for 1m01s",
        "weights  m in default: version 3 (step-3), 1 of 2 have it",
        "state    ok",
    ]


def test_weights_name_who_lacks_them(capsys: pytest.CaptureFixture[str]) -> None:
    members = [
        {"worker_id": "a", "weights": "current"},
        {"worker_id": "b", "weights": "behind", "weight_version": 2, "weights_reason": "it slept"},
    ]
    model = {"model": "m", "pool": "p", "weight_version": 3, "workers": members, "pending": [1]}
    assert shown(capsys, *tables.weights([model], {"b": "image-1"})) == [
        "POOL  MODEL  VERSION  LABEL  CURRENT  PENDING",
        "p     m            3  -      1 of 2         1",
        "",
        "WORKER   WEIGHTS  VERSION  WHY",
        "image-1  behind         2  it slept",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (True, "-"),
        (-1, "0.00s"),
        (0, "0.0s"),
        (0.04, "0.04s"),
        (3.21, "3.2s"),
        (9.97, "10s"),
        (59.6, "1m00s"),
        (3599, "59m59s"),
        (7500, "2h05m"),
        (86400 * 4 + 7200, "4d02h"),
    ],
)
def test_lengths_of_time(seconds: Any, text: str) -> None:
    assert tables.span(seconds) == text


def test_colours_only_on_a_terminal_that_wants_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[32m" in shown(capsys, tables.workers([worker()]))[1]
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[32m" not in shown(capsys, tables.workers([worker()]))[1]
