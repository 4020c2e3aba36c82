"""The log: one line per event, whatever clients and workers put into it."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
import warnings
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from router.dispatch import Dispatcher
from router.errors import NotFound
from router.front.errors import log_error
from router.front.record import ExchangeRecord, serving
from router.observe import logs
from router.pool import events, policies
from router.pool.cost import Speeds
from router.pool.lifecycle import Probe
from router.pool.match import Facts
from router.pool.pools import Role
from router.pool.registry import Registry
from router.pool.worker import ROUTER_RESTARTED, Capabilities, Hold, HoldKind, Origin, Weights


@pytest.fixture
def _restored() -> Iterator[None]:
    root, own = logging.getLogger(), logging.getLogger("router")
    before = root.handlers[:], root.level, own.level
    hook = sys.excepthook
    yield
    logging.captureWarnings(False)
    sys.excepthook = hook
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
    logs.listening(registry.bus)(None)
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
    logs.listening(registry.bus)(None)
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


@pytest.mark.usefixtures("_restored")
def test_json_is_one_object_per_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", json=True)
    extra = {"request_id": "r1", "worker": None, "seconds": 0.5, "quoted": "a\nb"}
    logging.getLogger("router.web").warning("%s failed\r\n\u2028", "GET /a\nb", extra=extra)
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert line.isascii()
    said = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", said.pop("time"))
    assert said == {
        "level": "warning",
        "logger": "router.web",
        "message": "GET /a\nb failed\r\n\u2028",
        "request_id": "r1",
        "seconds": 0.5,
        "quoted": "a\nb",
    }


@pytest.mark.usefixtures("_restored")
def test_in_json_all_that_python_writes_is_one_line_too(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure("info", json=True)
    try:
        raise ExceptionGroup("two", [ZeroDivisionError("why"), KeyError("who")])
    except ExceptionGroup as error:
        logging.getLogger("router").exception("failed")
        sys.excepthook(type(error), error, error.__traceback__)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    caught, uncaught, warned = map(json.loads, capsys.readouterr().err.splitlines())
    for said in (caught, uncaught):
        assert "ZeroDivisionError: why" in said["traceback"]
    assert (uncaught["level"], uncaught["message"]) == (
        "critical",
        "the program ends: ExceptionGroup",
    )
    assert "DeprecationWarning: old" in warned["message"]


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
)
@pytest.mark.usefixtures("_restored")
def test_a_terminal_gets_colours_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], coloured: bool
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    logs.configure("info")
    logging.getLogger("router").warning("\x1b[31mmine", extra={"request_id": "r1"})
    line = stream.getvalue()
    assert "\\x1b[31mmine" in line
    escapes = re.findall(r"\x1b\[[0-9;]*m", line)
    assert bool(escapes) is coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", line).endswith("WARNING \\x1b[31mmine [request_id=r1]\n")


@pytest.mark.usefixtures("_restored")
def test_lines_of_a_task_have_the_request_that_it_serves(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure("info", json=True)
    log = logging.getLogger("router").info

    async def serve(request_id: str) -> None:
        serving.set(ExchangeRecord(request_id, "GET", "/"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, log, request_id)
        log(request_id)
        log("other", extra={"request_id": "other"})

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, "a")
            nursery.start_soon(serve, "b")
        log("none")

    trio.run(main)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert sorted((said["message"], said.get("request_id")) for said in lines) == [
        *[("a", "a")] * 2,
        *[("b", "b")] * 2,
        ("none", None),
        *[("other", "other")] * 2,
    ]


def test_the_events_of_each_request_are_heard_only_at_level_debug(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[str] = []
    monkeypatch.setattr(logs, "log_event", lambda event: heard.append(type(event).__name__))
    for level, expected in (("INFO", ["WorkerAdded"]), ("DEBUG", ["LeaseGranted", "WorkerAdded"])):
        caplog.set_level(level, "router.pool")
        heard.clear()
        registry = Registry()
        logs.listening(registry.bus)(None)
        registry.lease(registry.add("http://w:1", Origin.STATIC))
        assert sorted(heard) == expected


@pytest.mark.usefixtures("_restored")
def test_a_lease_that_another_request_makes_room_for_has_its_own_request(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure("debug", json=True)

    async def main() -> None:
        registry = Registry()
        logs.listening(registry.bus)(None)
        dispatcher = Dispatcher(registry, policies.make("random", Speeds(trio.current_time)))
        worker = registry.add("http://w:1", Origin.STATIC, concurrency=1)
        registry.learned(worker, Capabilities())
        registry.probed(worker, Probe.OK)
        first = await dispatcher.lease(Facts())

        async def wait() -> None:
            serving.set(ExchangeRecord("second", "GET", "/"))
            with await dispatcher.lease(Facts()):
                pass

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            serving.set(ExchangeRecord("first", "GET", "/"))
            first.release()

    trio.run(main)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    leases = [(said["event"], said.get("request_id")) for said in lines if "lease" in said["event"]]
    assert leases == [
        ("lease_granted", None),
        ("lease_granted", "second"),
        ("lease_ended", "first"),
        ("lease_ended", "second"),
    ]
