"""The router's JSON as tables of at most 80 columns. Pure; fields that are missing show as `-`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text

from ..text import one_line

Fields = dict[str, Any]
Cell = str | Text

NONE = "-"


def table(
    *columns: str,
    right: tuple[str, ...] = (),
    whole: str = "",
    fold: bool = True,
    rows: Iterable[tuple[Cell, ...]],
) -> Table:
    """A table without lines. What does not fit goes on in the next line, save in the column
    `whole`; without `fold` it is cut off."""
    made = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for name in columns:
        side: JustifyMethod = "right" if name in right else "left"
        made.add_column(name, justify=side, overflow="fold", no_wrap=name == whole)
    for row in rows:
        cells = [cell if isinstance(cell, Text) else Text(cell) for cell in row]
        for cell in cells:
            cell.no_wrap, cell.overflow = not fold, "fold" if fold else "ellipsis"
        made.add_row(*cells)
    return made


def say(value: Any) -> str:
    """A value as the text of a cell."""
    match value:
        case None | "" | []:
            return NONE
        case bool():
            return "yes" if value else "no"
        case list():
            return one_line(", ".join(map(str, value)))
        case _:
            return one_line(str(value))


def span(seconds: Any) -> str:
    """A length of time: 0.04s, 3.2s, 12s, 3m20s, 2h05m, 4d02h."""
    if not isinstance(seconds, int | float) or isinstance(seconds, bool):
        return NONE
    if seconds < 9.95:
        return f"{max(seconds, 0):.{1 if seconds >= 0.995 or not seconds else 2}f}s"
    whole = round(seconds)
    for unit, size, below, part in (("d", 86400, "h", 3600), ("h", 3600, "m", 60)):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // part:02d}{below}"
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"


def state(worker: Fields) -> Text:
    """Whether a worker serves, or why not."""
    if worker.get("routable"):
        return Text("ready", "green")
    reasons = worker.get("reasons") or ["not routable"]
    bad = {"unhealthy", "unauthorized", "weights_failed", "quarantined", "removed"} & {*reasons}
    return Text(say(reasons), "red" if bad else "yellow")


def name_of(worker: Fields) -> str:
    """What to call a worker."""
    return say(worker.get("name") or worker.get("display_id") or worker.get("url"))


def workers(found: list[Fields]) -> Table:
    """A row for each worker."""
    several = len({worker.get("pool") for worker in found}) > 1
    columns = ["NAME", *["POOL"] * several, "STATE", "SLOTS", "WORK", "WEIGHTS", "MODEL"]
    rows: list[tuple[Cell, ...]] = [
        (
            name_of(worker),
            *[say(worker.get("pool"))] * several,
            state(worker),
            f"{say(worker.get('slots_in_use'))}/{say(worker.get('max_concurrency'))}",
            span(worker.get("outstanding_seconds")),
            say(worker.get("weight_version")),
            say(worker.get("models")),
        )
        for worker in found
    ]
    return table(*columns, right=("SLOTS", "WORK", "WEIGHTS"), rows=rows)


_SHOWN = (
    *("url", "pool", "health", "health_reason", "admin", "memory", "weights", "weight_version"),
    *("weights_reason", "slots_in_use", "max_concurrency", "jobs", "ghosts", "active_requests"),
    *("models", "model_path", "task_types", "origin", "incarnation", "suspicion"),
)
_LAUNCH = ("launcher", "phase", "detail", "pid", "restarts", "gpus", "log")


def worker(found: Fields) -> Table:
    """All about one worker that is known."""
    launch = found.get("launch") or {}
    rows: list[tuple[Cell, ...]] = [("name", name_of(found)), ("state", state(found))]
    rows += [(key, say(found[key])) for key in _SHOWN if found.get(key) not in (None, [])]
    rows += [(key, say(launch[key])) for key in _LAUNCH if launch.get(key) not in (None, [])]
    return pairs(rows)


def pairs(rows: Iterable[tuple[Cell, ...]]) -> Table:
    """Names and values."""
    made = table("", "", rows=rows)
    made.show_header = False
    return made


def queue(found: Fields) -> list[Table | Text]:
    """What waits."""
    groups = found.get("groups") or []
    line = Text(
        f"{say(found.get('waiting'))} waiting, at most {say(found.get('limit'))};"
        f" oldest {span(found.get('oldest_wait_seconds'))};"
        f" {say(found.get('drain_rate_per_second'))} per second get a worker"
    )
    if not groups:
        return [line]
    rows = [
        (
            *(say(group.get(key)) for key in ("pool", "model", "task", "client", "priority")),
            say(group.get("waiting")),
            span(group.get("oldest_wait_seconds")),
        )
        for group in groups
    ]
    columns = ("POOL", "MODEL", "TASK", "CLIENT", "PRIORITY", "WAITING", "OLDEST")
    return [line, table(*columns, right=columns[-2:], rows=rows)]


def weights(found: list[Fields], names: dict[str, str]) -> list[Table | Text]:
    """The versions of each model, and the workers that have another. `names` by `worker_id`."""
    rows, behind = [], []
    for model in found:
        members = model.get("workers") or []
        late = [one for one in members if one.get("weights") != "current"]
        rows.append(
            (
                say(model.get("pool")),
                say(model.get("model")),
                say(model.get("weight_version")),
                say(model.get("label")),
                f"{len(members) - len(late)} of {len(members)}",
                say(len(model.get("pending") or [])),
            )
        )
        for one in late:
            name = say(names.get(one.get("worker_id", ""), one.get("worker_url")))
            version = say(one.get("weight_version"))
            why = say(one.get("weights_reason"))
            behind.append((name, Text(say(one.get("weights")), "yellow"), version, why))
    columns = ("POOL", "MODEL", "VERSION", "LABEL", "CURRENT", "PENDING")
    shown: list[Table | Text] = [table(*columns, right=("VERSION", "PENDING"), rows=rows)]
    if behind:
        parts = ("WORKER", "WEIGHTS", "VERSION", "WHY")
        shown += [Text(), table(*parts, right=("VERSION",), rows=behind)]
    return shown


def jobs(found: dict[str, list[Fields]], now: float) -> Table:
    """A row for each job; `found` by kind."""
    colours = {"completed": "green", "failed": "red", "in_progress": "cyan"}
    rows = []
    for kind, some in found.items():
        for job in some:
            told = say(job.get("status"))
            began = job.get("created_at")
            age = now - began if isinstance(began, int | float) else None
            progress = job.get("progress")
            done = f"{progress}%" if isinstance(progress, int | float) else NONE
            status = Text(told, colours.get(told, ""))
            rows.append((kind, say(job.get("id")), status, done, span(age), say(job.get("model"))))
    columns = ("KIND", "ID", "STATUS", "DONE", "AGE", "MODEL")
    return table(*columns, right=("DONE", "AGE"), whole="ID", rows=rows)


def status(found: Fields, ready: bool) -> Table:
    """The pool at a glance, from health, workers, queue and weights."""
    health, queued = found["health"], found["queue"]
    total, serving = health.get("total_workers", 0), health.get("healthy_workers", 0)
    other = {
        "dead": health.get("dead_workers"),
        "asleep": health.get("sleeping_workers"),
        "on trial": health.get("workers_on_trial"),
    }
    more = "".join(f", {count} {what}" for what, count in other.items() if count)
    waiting = say(queued.get("waiting"))
    if queued.get("waiting"):
        waiting += f", the oldest for {span(queued.get('oldest_wait_seconds'))}"
    rows: list[tuple[Cell, ...]] = [
        ("router", say(found["url"])),
        ("ready", Text("yes", "green") if ready else Text("no", "red")),
        ("workers", f"{serving} of {total} ready{more}"),
        ("waiting", waiting),
    ]
    for model in found["weights"]:
        members = model.get("workers") or []
        current = sum(one.get("weights") == "current" for one in members)
        version = say(model.get("weight_version"))
        label = f" ({say(model['label'])})" if model.get("label") else ""
        what = f"{say(model.get('model'))} in {say(model.get('pool'))}"
        rows.append(
            ("weights", f"{what}: version {version}{label}, {current} of {len(members)} have it")
        )
    state = say(health.get("state"))
    why = f": {say(health['state_reason'])}" if health.get("state_reason") else ""
    rows.append(("state", Text(f"{state}{why}", "red" if state == "failing" else "")))
    if health.get("contained_errors"):
        rows.append(("errors", f"{say(health['contained_errors'])} unexpected ones, see the log"))
    return pairs(rows)
