"""The log: one line per event, on standard error."""

from __future__ import annotations

import logging
from typing import Any

from ..pool import events
from ..pool.worker import ROUTER_RESTARTED, Weights
from ..text import block, one_line
from .stderr import Output

logger = logging.getLogger("router.pool")

_FIELDS = ("request_id", "code")


class _LineFormatter(logging.Formatter):
    """Time, level, message, fields for machines; then, indented, the lines of `quoted` and a
    traceback."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        line = super().formatMessage(record)
        named = [(name, getattr(record, name, None)) for name in _FIELDS]
        tail = " ".join(f"{name}={value}" for name, value in named if value)
        first = one_line(f"{line} [{tail}]" if tail else line)
        quoted = str(getattr(record, "quoted", ""))
        return "\n".join([first, block(quoted.rstrip("\n"))]) if quoted else first

    def formatException(self, ei: Any) -> str:
        return block(super().formatException(ei))


def configure(level: str) -> Output:
    """Send the router's log to standard error, from `level` (debug, info, warning, error) on.

    Libraries log from warning on, so that debugging the router shows the router.
    """
    formatter = _LineFormatter(
        "%(asctime)s %(levelname)-7s %(message)s", datefmt="%Y-%m-%d %H:%M:%S"
    )

    def notice(lines: int) -> str:
        what = f"{lines} lines of this log were lost, because they could not be written in time"
        fields = {"levelno": logging.ERROR, "levelname": "ERROR", "msg": what}
        return formatter.format(logging.makeLogRecord(fields)) + "\n"

    output = Output(notice=notice)
    handler = logging.StreamHandler(output)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    set_level(level)
    return output


def set_level(level: str) -> None:
    """Log what the router says from `level` on."""
    logging.getLogger("router").setLevel(level.upper())


def log_event(event: events.Event) -> None:
    """Log an event about a worker. An observer of the registry."""
    match event:  # the most frequent ones first
        case events.LeaseGranted(lease):
            logger.debug("worker %s: lease granted", lease.worker.url)
        case events.LeaseEnded(lease):
            logger.debug("worker %s: lease ended", lease.worker.url)
        case events.SlotFreed(hold):
            logger.debug("worker %s: slot freed (%s)", hold.worker.url, hold.kind)
        case events.WorkerAdded(worker, past):
            known = ", known from before the restart" if past is not None else ""
            logger.info("worker %s added (%s%s)", worker.url, worker.origin, known)
        case events.WorkerRegistered(worker):
            logger.info(
                "worker %s registered; a start without the flag keeps the worker",
                worker.url,
            )
        case events.AliasesChanged(worker):
            aliases = ", ".join(worker.aliases) or "none"
            logger.debug("worker %s: other URLs: %s", worker.url, aliases)
        case events.WorkerRemoved(worker):
            logger.info("worker %s removed", worker.url)
        case events.FacetChanged(worker, facet, old, new, reason):
            level = logging.WARNING if new in ("unhealthy", "failed") else logging.INFO
            why = f": {reason}" if reason else ""
            logger.log(level, "worker %s: %s %s -> %s%s", worker.url, facet, old, new, why)
        case events.CapabilitiesLearned(worker):
            can = worker.capabilities
            models = ", ".join(can.models) if can and can.models else "an unnamed model"
            logger.info("worker %s serves %s", worker.url, models)
        case events.Suspected(worker, reason):
            # A restart of the router puts all known workers under suspicion.
            level = logging.DEBUG if reason == ROUTER_RESTARTED else logging.INFO
            logger.log(level, "worker %s may be another process now: %s", worker.url, reason)
        case events.Absolved(worker, reason):
            logger.info("worker %s is still the same process (%s)", worker.url, reason)
        case events.Reincarnated(worker, reason):
            # There is no sign of another process, and the worker lacks no weights.
            vain = reason.startswith(f"{ROUTER_RESTARTED};") and worker.weights is Weights.CURRENT
            level = logging.INFO if vain else logging.WARNING
            logger.log(level, "worker %s now counts as another process (%s)", worker.url, reason)
        case events.Ejected(worker, reason):
            logger.warning("worker %s is on trial: %s", worker.url, reason)
        case events.Readmitted(worker, reason):
            logger.info("worker %s is no longer on trial: %s", worker.url, reason)
        case events.Trouble(worker, reason):
            logger.debug("worker %s: %s", worker.url, reason)
        case events.Held(hold):
            logger.debug("worker %s: slot stays occupied (%s)", hold.worker.url, hold.kind)
        case events.SlotsChanged(worker):
            logger.debug("worker %s: %d slots", worker.url, worker.max_concurrency)
        case events.RoleChanged(worker):
            logger.info("worker %s belongs to the pool %s now", worker.url, worker.pool)
