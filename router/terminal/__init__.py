"""Commands that ask a running router over HTTP: tables, actions, the live view, the bench.

They know the router only by its API, as any client does.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ..command import Command
from ..program import PROG

if TYPE_CHECKING:
    from .flags import Asking

_STATUS = (
    "0 if all is well, 1 if not (the router is not ready, refuses, or a worker did not succeed),"
    " 2 for wrong arguments, 3 if no router answers, or one that is too old for the command, 4 if"
    " the router wants another key."
)
_JSON = "--json prints what the router says, for programs. Tables are for people and may change."


def _flags(name: str) -> type:
    from . import flags

    return flags.OF[name]


def parse(name: str, arguments: list[str]) -> tuple[Asking, list[str]]:
    """The settings of a command, and its arguments that are no flags. Raises SettingsError."""
    from ..settings import load, split_flags
    from . import flags

    cls = flags.OF[name]
    given = split_flags(arguments, cls, words=BY_NAME[name].words)
    return load(cls, given, steps=[flags.with_environment]), given.words


def _run(name: str, arguments: list[str]) -> int:
    """Run the command, with no more imports than it needs."""
    from . import flags
    from .client import run

    settings, words = parse(name, arguments)
    match settings:
        case flags.Logs():
            from . import logs

            return run(logs.show, settings, words)
        case flags.Bench():
            from . import bench

            return run(bench.measure, settings)
        case flags.Reading() if name in _TABLES:
            from . import reading

            return run(reading.show, name, settings, words)
        case flags.Reading():
            from . import actions

            return run(actions.act, name, settings, words)
        case _:
            from . import top

            return run(top.watch, settings)


def _command(name: str, summary: str, about: str, *words: str, example: str = "") -> Command:
    return Command(
        name,
        summary,
        partial(_run, name),
        words,
        about=about,
        flags=partial(_flags, name),
        examples=(f"{PROG} {example}",) if example else (),
        status=_STATUS,
    )


_TABLES = {
    "status": ("print the pool of a router at a glance; status 1 if it is not ready",),
    "workers": ("print the workers of a router", "[NAME]"),
    "queue": ("print what waits for a worker",),
    "weights": ("print the weight versions, and who lacks them",),
    "jobs": ("print the newest video and mesh jobs",),
}
_NAMES = "NAME is the name of a worker, its URL, or host:port."
_ALL = "Without a NAME: all workers, or those of --model or --pool."

COMMANDS = (
    *(
        _command(
            name,
            about[0],
            f"{about[0].partition(';')[0].capitalize()}, in at most 80 columns. {_JSON}",
            *about[1:],
        )
        for name, about in _TABLES.items()
    ),
    _command(
        "top",
        "show a router's pool live; q quits",
        "Show workers, queue, weight changes and the last minute live, on the whole terminal. It"
        " connects again when the connection is lost. q or Ctrl-C ends it.",
    ),
    _command(
        "bench",
        "send prompts through a router, and measure",
        "Send prompts, and print throughput, times, errors and the work of each worker.\n"
        "The bound is the least time in which the pool could have made the same: the work of all"
        " successful requests, divided by the slots of the workers that are ready at the start (or"
        " by --concurrency, if that is less); never less than the longest request. The work of a"
        " request is the time for which its worker says that it generated (inference_time_s), or"
        " else the time from the request to its answer. Status 1 if a request failed.",
        example="bench --prompts 100 --concurrency 8 --mix image=3,video=1",
    ),
    _command(
        "logs",
        "print or follow the log of a launched worker",
        f"Print the end of a launched worker's output. {_NAMES}",
        "NAME",
        example="logs Qwen-Image-0 -f",
    ),
    _command(
        "drain",
        "give workers nothing new, and wait until their work has ended",
        f"Give workers nothing new, and wait until their work has ended. {_NAMES}",
        "NAME...",
        example="drain Qwen-Image-0 --within 5m",
    ),
    _command(
        "undrain", "end the draining of workers", f"Let workers serve again. {_NAMES}", "NAME..."
    ),
    _command(
        "quarantine",
        "keep workers out: no generations and no calls that change them",
        f"Keep workers out until 'recover'. {_NAMES}",
        "NAME...",
    ),
    _command(
        "recover",
        "end the quarantine or the trial of workers",
        f"End the quarantine or the trial of workers. {_NAMES}",
        "NAME...",
    ),
    _command(
        "remove",
        "remove workers from the pool; launched ones are ended",
        f"Remove workers from the pool. Those that the router launched are ended. {_NAMES}",
        "NAME...",
    ),
    _command(
        "restart",
        "start launched workers again",
        f"Start launched workers again, whether they run or were given up. {_NAMES}",
        "NAME...",
    ),
    _command(
        "sleep",
        "have workers give back their GPU memory",
        f"Have workers give back their GPU memory once they are idle. {_NAMES} {_ALL}",
        "[NAME...]",
    ),
    _command(
        "wake",
        "have workers take their GPU memory again",
        f"Have workers take their GPU memory again. {_NAMES} {_ALL}",
        "[NAME...]",
    ),
    _command(
        "refit",
        "load weights from a path into all workers of a model",
        "Load the weights at PATH, as the workers see it, into all workers of one model.",
        "PATH",
        example="refit /checkpoints/step-7 --rolling 25%",
    ),
    _command(
        "sync",
        "bring all workers to the current weights",
        f"Bring workers to the current weights, and wait for it. {_NAMES} {_ALL}",
        "[NAME...]",
    ),
    _command(
        "scale",
        "change the number of launched workers",
        "Change the number of workers of a launcher. The router starts or ends them afterwards.",
        "N",
        example="scale 8 --launcher Qwen-Image",
    ),
)
BY_NAME = {command.name: command for command in COMMANDS}
