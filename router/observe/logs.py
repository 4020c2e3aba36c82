"""The log: one line per event on standard error, for people or as JSON."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from ..bus import Bus
from ..front.record import served_id
from ..pool import events
from ..pool.worker import ROUTER_RESTARTED, Weights
from ..text import block, one_line, to_json
from .stderr import Output

logger = logging.getLogger("router.pool")

_IN_TEXT = ("request_id", "code")  # the sentence has the others
_OF_LIBRARY = {*vars(logging.makeLogRecord({})), "message", "asctime", "quoted"}
_COLOURS = {"DEBUG": "2", "WARNING": "33", "ERROR": "31", "CRITICAL": "1;31"}
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])")

_OF_EACH_REQUEST = (events.LeaseGranted, events.LeaseEnded, events.SlotFreed, events.Held)


class _Formatter(logging.Formatter):
    """What both formats share: the request that a line is about."""

    def _fields(self, record: logging.LogRecord) -> dict[str, Any]:
        """The fields of `extra` that are known, and the request id of the present exchange."""
        fields = {name: value for name, value in vars(record).items() if name not in _OF_LIBRARY}
        fields.setdefault("request_id", served_id())
        return {name: value for name, value in fields.items() if value is not None}


class _LineFormatter(_Formatter):
    """Time, level, message, fields for machines; then, indented, the lines of `quoted` and a
    traceback."""

    def __init__(self, *, coloured: bool) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", datefmt="%Y-%m-%d %H:%M:%S")
        self._coloured = coloured

    def formatMessage(self, record: logging.LogRecord) -> str:
        fields = self._fields(record)
        tail = " ".join(f"{name}={fields[name]}" for name in _IN_TEXT if fields.get(name))
        line = one_line(super().formatMessage(record))
        tail = one_line(f" [{tail}]") if tail else ""
        if self._coloured:
            level = f"{record.levelname:<7}"
            colour = _COLOURS.get(record.levelname)
            painted = f"\x1b[{colour}m{level}\x1b[0m" if colour else level
            line = line.replace(level, painted, 1)
            tail = f"\x1b[2m{tail}\x1b[0m" if tail else ""
        quoted = str(getattr(record, "quoted", ""))
        return "\n".join([line + tail, *([block(quoted.rstrip("\n"))] if quoted else [])])

    def formatException(self, ei: Any) -> str:
        return block(super().formatException(ei))


class JsonFormatter(_Formatter):
    """One JSON object in one line, with a traceback as one field of it."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._fields(record),
        }
        if quoted := getattr(record, "quoted", ""):
            fields["quoted"] = str(quoted)
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return to_json(fields)


def configure(level: str, *, json: bool = False) -> Output:
    """Send the router's log to standard error, from `level` (debug, info, warning, error) on.

    Libraries log from warning on, so that debugging the router shows the router. With `json`, all
    that Python itself would write there goes to the log too: uncaught errors and warnings.
    """

    def notice(lines: int) -> str:
        what = f"{lines} lines of this log were lost, because they could not be written in time"
        fields = {"levelno": logging.ERROR, "levelname": "ERROR", "name": "router", "msg": what}
        return formatter.format(logging.makeLogRecord(fields)) + "\n"

    output = Output(notice=notice)
    coloured = output.isatty() and not os.environ.get("NO_COLOR")
    coloured = coloured and os.environ.get("TERM") != "dumb"
    formatter = JsonFormatter() if json else _LineFormatter(coloured=coloured)
    handler = logging.StreamHandler(output)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    set_level(level)
    if json:
        sys.excepthook = _uncaught
        logging.captureWarnings(True)
    return output


def set_level(level: str) -> None:
    """Log what the router says from `level` on."""
    logging.getLogger("router").setLevel(level.upper())


def handlers() -> list[logging.StreamHandler[Output]]:
    """What writes the log to standard error."""
    return [
        handler
        for handler in logging.getLogger().handlers
        if isinstance(handler, logging.StreamHandler) and isinstance(handler.stream, Output)
    ]


def on_terminal() -> bool:
    """Whether the log goes to a terminal."""
    return any(handler.stream.isatty() for handler in handlers())


def _uncaught(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    logging.getLogger("router").critical(
        "the program ends: %s", kind.__name__, exc_info=(kind, error, trace)
    )


def listening(bus: Bus) -> Callable[[object], None]:
    """The function that makes the log listen to what happens to the workers; to be called again
    when the level has changed. Below level debug, the log does not hear the events of each request.
    """
    kinds = [kind for kind in vars(events).values() if isinstance(kind, type)]
    kinds = [kind for kind in kinds if issubclass(kind, events.Event)]
    leaves = [kind for kind in kinds if not kind.__subclasses__()]
    few = [kind for kind in leaves if kind not in _OF_EACH_REQUEST]
    ends: list[Callable[[], None]] = []

    def listen(_: object) -> None:
        while ends:
            ends.pop()()
        all_ = logger.isEnabledFor(logging.DEBUG)
        ends.append(bus.subscribe(log_event, *(leaves if all_ else few)))

    return listen


def log_event(event: events.Event) -> None:
    """Log an event about a worker."""
    said = _said(event)
    if said is not None:
        level, words = said
        name = _HUMP.sub("_", type(event).__name__).lower()
        url = event.worker.url
        extra = {"event": name, "worker": url}
        if isinstance(event, events.OfLease) and event.lease.request_id is not None:
            extra["request_id"] = event.lease.request_id
        logger.log(level, "worker %s%s", url, words, extra=extra)


def _said(event: events.Event) -> tuple[int, str] | None:
    """Level and words about an event, to stand behind the worker's URL."""
    match event:
        case events.LeaseGranted():
            return logging.DEBUG, ": lease granted"
        case events.LeaseEnded():
            return logging.DEBUG, ": lease ended"
        case events.SlotFreed(hold):
            return logging.DEBUG, f": slot freed ({hold.kind})"
        case events.WorkerAdded(worker, past):
            known = ", known from before the restart" if past is not None else ""
            return logging.INFO, f" added ({worker.origin}{known})"
        case events.WorkerRegistered():
            return logging.INFO, " registered; a start without the flag keeps the worker"
        case events.AliasesChanged(worker):
            return logging.DEBUG, f": other URLs: {', '.join(worker.aliases) or 'none'}"
        case events.WorkerRemoved():
            return logging.INFO, " removed"
        case events.FacetChanged(_, facet, old, new, reason):
            level = logging.WARNING if new in ("unhealthy", "failed") else logging.INFO
            return level, f": {facet} {old} -> {new}{f': {reason}' if reason else ''}"
        case events.CapabilitiesLearned(worker):
            can = worker.capabilities
            models = ", ".join(can.models) if can and can.models else "an unnamed model"
            return logging.INFO, f" serves {models}"
        case events.Suspected(_, reason):
            # A restart of the router puts all known workers under suspicion.
            level = logging.DEBUG if reason == ROUTER_RESTARTED else logging.INFO
            return level, f" may be another process now: {reason}"
        case events.Absolved(_, reason):
            return logging.INFO, f" is still the same process ({reason})"
        case events.Reincarnated(worker, reason):
            # There is no sign of another process, and the worker lacks no weights.
            vain = reason.startswith(f"{ROUTER_RESTARTED};") and worker.weights is Weights.CURRENT
            level = logging.INFO if vain else logging.WARNING
            return level, f" now counts as another process ({reason})"
        case events.Ejected(_, reason):
            return logging.WARNING, f" is on trial: {reason}"
        case events.Readmitted(_, reason):
            return logging.INFO, f" is no longer on trial: {reason}"
        case events.Trouble(_, reason):
            return logging.DEBUG, f": {reason}"
        case events.Held(hold):
            return logging.DEBUG, f": slot stays occupied ({hold.kind})"
        case events.SlotsChanged(worker):
            return logging.DEBUG, f": {worker.max_concurrency} slots"
        case events.RoleChanged(worker):
            return logging.INFO, f" belongs to the pool {worker.pool} now"
    return None
