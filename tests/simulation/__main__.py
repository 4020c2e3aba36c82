"""Live through histories in a simulated world; each is made of its seed alone."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import os
import random
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import TypeAlias

from tests.simulation.faults import FAULTS, broken
from tests.simulation.history import CHAOS, live
from tests.simulation.themes import MIXED, THEMES
from tests.simulation.universe import Universe, run

History: TypeAlias = Callable[[Universe], Awaitable[None]]

_SHOWN = 60  # lines of the diary


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, nargs="+", help="these; absent: any")
    parser.add_argument("--seeds", type=int, default=1, help="so many from the last one on")
    parser.add_argument("--seconds", type=float, help="go on for so long instead")
    parser.add_argument("--hours", type=float, default=0.1, help="simulated hours of each")
    parser.add_argument("--chaos", type=float, default=CHAOS, help="seconds of it in each round")
    parser.add_argument(
        "--calm", type=float, default=0, help="minutes without faults in each round"
    )
    parser.add_argument("--trace", action="store_true", help="print all that happens")
    parser.add_argument("--keep-going", action="store_true", help="after a seed that fails")
    parser.add_argument("--twice", action="store_true", help="each, and compare the two")
    parser.add_argument("--theme", choices=(MIXED, *THEMES), help="of all rounds")
    parser.add_argument("--themed", action="store_true", help="with --fault: with its theme")
    parser.add_argument(
        "--fault",
        choices=("all", *FAULTS),
        help="put it back, and tell the first of the seeds that finds it; all: a table of them",
    )
    given = parser.parse_args()
    if given.fault is not None:
        return find(given)
    began, lived, count, failed = time.monotonic(), 0.0, 0, 0
    for seed in chosen(given, began):
        again = f"python -m tests.simulation --seed {seed} --hours {given.hours:g}"
        again += f" --calm {given.calm:g}" if given.calm else ""
        again += f" --theme '{given.theme}'" if given.theme else ""
        again += f" --chaos {given.chaos:g}" if given.chaos != CHAOS else ""
        history = history_of(given, given.theme)
        universe, error = one(seed, history, given.trace)
        count, lived = count + 1, lived + universe.lasted / 3600
        if error is not None:
            failed += 1
            if not given.trace and not given.keep_going:
                print("\n".join(universe.diary[-_SHOWN:]))
            print(f"{again}: {type(error).__name__}: {error}", flush=True)
            if not given.keep_going:
                raise error
        elif given.twice and digest(universe) != digest(one(seed, history, False)[0]):
            print(f"{again}: another history the second time")
            return 1
        else:
            print(f"seed {seed}: {universe.lasted:.0f} s, all is well", flush=True)
    spent = time.monotonic() - began
    print(f"{count} seeds, {lived:.1f} simulated hours in {spent:.0f} s: {failed} failed")
    return 1 if failed else 0


def find(given: argparse.Namespace) -> int:
    """Put faults back, and tell which seed finds each; whether one was not found."""
    names = FAULTS if given.fault == "all" else [given.fault]
    missed = 0
    print(
        "| Fault put back | Theme | Seeds | CPU s | Shown as |\n| --- | --- | ---: | ---: | --- |"
    )
    for name in names:
        fault, began = FAULTS[name], time.process_time()
        theme = given.theme or (fault.theme if given.themed else None)
        history = history_of(given, theme)
        seeds, error = 0, None
        for seed in chosen(given, time.monotonic()):
            seeds += 1
            with contextlib.ExitStack() as stack:
                fault.put(stack)
                _, error = one(seed, history, given.trace)
            if broken:
                raise broken[0]
            if error is not None:
                break
        missed += error is None
        found = f"none of {seeds}" if error is None else str(seeds)
        shown = "" if error is None else f"{type(error).__name__}: {error}"[:160]
        spent = time.process_time() - began
        said = f"{name}: {fault.what}" if given.fault == "all" else fault.what
        print(f"| {said} | {theme or 'any'} | {found} | {spent:.0f} | {shown} |", flush=True)
    return 1 if missed else 0


def history_of(
    given: argparse.Namespace, theme: str | None
) -> Callable[[Universe], Awaitable[None]]:
    """How a universe is lived through."""
    return partial(
        live, hours=given.hours, chaos=given.chaos, ordinary=given.calm * 60, theme=theme
    )


def chosen(given: argparse.Namespace, began: float) -> Iterator[int]:
    """The seeds to live through."""
    *some, last = given.seed or [random.randrange(10**6)]
    yield from some
    number = itertools.count(last)
    if given.seconds is None:
        yield from itertools.islice(number, given.seeds)
    else:
        yield from itertools.takewhile(lambda _: time.monotonic() < began + given.seconds, number)


def one(seed: int, history: History, live_trace: bool) -> tuple[Universe, BaseException | None]:
    """Live through one seed; what went wrong, if anything."""
    try:
        return run(str(seed), history, live=live_trace), None
    except Exception as error:
        universe: Universe = error.universe  # type: ignore[attr-defined]
        first: BaseException = error
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        return universe, first


def digest(universe: Universe) -> str:
    return hashlib.sha256("\n".join(universe.diary).encode()).hexdigest()


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":  # the order of sets of strings
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [*sys.orig_argv])
    sys.exit(main())
