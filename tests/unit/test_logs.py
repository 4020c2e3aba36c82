"""The log: one line per event, whatever clients and workers put into it."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from router.errors import NotFound
from router.front.errors import log_error
from router.front.record import ExchangeRecord
from router.observe import logs
from router.pool import events
from router.pool.lifecycle import Probe
from router.pool.pools import Role
from router.pool.registry import Registry
from router.pool.worker import ROUTER_RESTARTED, Capabilities, Hold, HoldKind, Origin, Weights


@pytest.fixture
def _restored() -> Iterator[None]:
    root, own = logging.getLogger(), logging.getLogger("router")
    before = root.handlers[:], root.level, own.level
    yield
    root.handlers[:], level, own_level = before
    root.setLevel(level)
    own.setLevel(own_level)


@pytest.mark.usefixtures("_restored")
def test_a_line_is_one_line_and_ends_with_the_fields(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info")
    logging.getLogger("router.web").warning(
        "%s failed\r\n2026 INFO all is well\x1b[0m\u2028", "GET /a\nb", extra={"code": "oops"}
    )
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert line.endswith(
        "WARNING GET /a\\nb failed\\r\\n2026 INFO all is well\\x1b[0m\\u2028 [code=oops]\n"
    )


def test_what_clients_sent_is_told_in_bounded_length(caplog: pytest.LogCaptureFixture) -> None:
    exchange = ExchangeRecord("r1", "GET", "/" + "a" * 60_000, arrived=0)
    log_error(logging.getLogger("router"), exchange, NotFound(f"{exchange.what}: Not Found"))
    (record,) = caplog.records
    assert len(record.getMessage()) < 1500


@pytest.mark.usefixtures("_restored")
def test_what_is_quoted_follows_as_indented_lines(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info")
    quoted = "loading\x1b[0m\n2026 INFO all is well\r\nout of memory"
    logging.getLogger("router").error("died:", extra={"quoted": quoted, "code": "x"})
    first, *others = capsys.readouterr().err.split("\n")
    assert first.endswith("ERROR   died: [code=x]")
    assert others == ["    loading\\x1b[0m", "    2026 INFO all is well", "    out of memory", ""]


@pytest.mark.usefixtures("_restored")
def test_a_traceback_follows_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info")
    try:
        raise ZeroDivisionError("why")
    except ZeroDivisionError:
        logging.getLogger("router").exception("failed", extra={"request_id": "r1"})
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith("ERROR   failed [request_id=r1]")
    assert lines[-1] == "    ZeroDivisionError: why"


@pytest.mark.usefixtures("_restored")
def test_libraries_are_heard_from_warning_on(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("debug")
    logging.getLogger("httpx").info("chatter")
    logging.getLogger("router.relay").debug("detail")
    assert capsys.readouterr().err.splitlines()[0].endswith("DEBUG   detail")


def test_what_happens_to_workers_is_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "router")
    registry = Registry(failure_threshold=1)
    told: list[events.Event] = []
    registry.subscribe(logs.log_event)
    registry.subscribe(told.append)
    worker = registry.add("http://w:1", Origin.STATIC)
    registry.add("http://w:1", Origin.REGISTERED)
    registry.alias("http://x:1", worker)
    registry.learned(worker, Capabilities())
    registry.probed(worker, Probe.OK)
    registry.lease(worker).release()
    lease = registry.lease(worker, Hold(worker, worker.incarnation, HoldKind.GENERATION))
    ghost = registry.keep(lease, HoldKind.GHOST)
    assert ghost is not None
    lease.release()
    registry.drop(ghost)
    registry.set_concurrency(worker, 2)
    registry.assign(worker, Role("teacher"))
    for trial in (events.Ejected(worker, "3 failed"), events.Readmitted(worker, "one succeeded")):
        told.append(trial)  # of another observer, which the registry does not know
        logs.log_event(trial)
    registry.trouble(worker, "connection reset")
    for event in (events.Ejected(worker, "3 failures"), events.Readmitted(worker, "a success")):
        logs.log_event(event)
        told.append(event)
    registry.suspect(worker, "its idle connection was closed")
    registry.absolve(worker)
    registry.probed(worker, Probe.REFUSED, "GET /health failed: connection refused")
    registry.reincarnate(worker, "it refused a connection")
    registry.remove(worker)
    kinds = [kind for kind in vars(events).values() if isinstance(kind, type(events.Event))]
    leaves = {k for k in kinds if issubclass(k, events.Event) and not k.__subclasses__()}
    assert {type(event) for event in told} == leaves
    lines = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert lines == [
        ("INFO", "worker http://w:1 added (static)"),
        ("INFO", "worker http://w:1 registered; a start without the flag keeps the worker"),
        ("DEBUG", "worker http://w:1: other URLs: http://x:1"),
        ("INFO", "worker http://w:1 serves an unnamed model"),
        ("INFO", "worker http://w:1: health unknown -> healthy"),
        ("DEBUG", "worker http://w:1: lease granted"),
        ("DEBUG", "worker http://w:1: lease ended"),
        ("DEBUG", "worker http://w:1: lease granted"),
        ("DEBUG", "worker http://w:1: slot stays occupied (ghost)"),
        ("DEBUG", "worker http://w:1: lease ended"),
        ("DEBUG", "worker http://w:1: slot freed (ghost)"),
        ("DEBUG", "worker http://w:1: 2 slots"),
        ("INFO", "worker http://w:1 belongs to the pool teacher now"),
        ("WARNING", "worker http://w:1 is on trial: 3 failed"),
        ("INFO", "worker http://w:1 is no longer on trial: one succeeded"),
        ("DEBUG", "worker http://w:1: connection reset"),
        ("WARNING", "worker http://w:1 is on trial: 3 failures"),
        ("INFO", "worker http://w:1 is no longer on trial: a success"),
        ("INFO", "worker http://w:1 may be another process now: its idle connection was closed"),
        ("INFO", "worker http://w:1 is still the same process (its idle connection was closed)"),
        ("INFO", "worker http://w:1 may be another process now: it refused a connection"),
        (
            "WARNING",
            "worker http://w:1: health healthy -> unhealthy:"
            " GET /health failed: connection refused",
        ),
        ("WARNING", "worker http://w:1 now counts as another process (it refused a connection)"),
        ("INFO", "worker http://w:1 removed"),
    ]


def test_after_a_restart_of_the_router_only_what_matters_is_loud(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "router")
    registry = Registry()
    registry.subscribe(logs.log_event)
    fresh, changed = (registry.add(f"http://w:{n}", Origin.STATIC) for n in (1, 2))
    registry.set_weights(changed, Weights.CURRENT, 1)
    caplog.clear()
    for worker in (fresh, changed):
        registry.suspect(worker, ROUTER_RESTARTED)
        registry.reincarnate(worker, f"{ROUTER_RESTARTED}; nothing proves that it is the same")
    registry.reincarnate(fresh, f"{ROUTER_RESTARTED}")  # and it knows nothing of its jobs
    lines = [(record.levelname, record.getMessage()[:25]) for record in caplog.records]
    assert [line for line in lines if ":2: " not in line[1]] == [
        ("DEBUG", "worker http://w:1 may be "),
        ("INFO", "worker http://w:1 now cou"),
        ("DEBUG", "worker http://w:2 may be "),
        ("WARNING", "worker http://w:2 now cou"),
        ("WARNING", "worker http://w:1 now cou"),
    ]
