"""Live through histories in a simulated world; each is made of its seed alone."""

from __future__ import annotations

import argparse
import hashlib
import itertools
import os
import random
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial

from tests.simulation.history import live
from tests.simulation.universe import Universe, run

_SHOWN = 60  # lines of the diary


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, nargs="+", help="these; absent: any")
    parser.add_argument("--seeds", type=int, default=1, help="so many from the last one on")
    parser.add_argument("--seconds", type=float, help="go on for so long instead")
    parser.add_argument("--hours", type=float, default=0.1, help="simulated hours of each")
    parser.add_argument(
        "--calm", type=float, default=0, help="minutes without faults in each round"
    )
    parser.add_argument("--trace", action="store_true", help="print all that happens")
    parser.add_argument("--keep-going", action="store_true", help="after a seed that fails")
    parser.add_argument("--twice", action="store_true", help="each, and compare the two")
    given = parser.parse_args()
    began, lived, count, failed = time.monotonic(), 0.0, 0, 0
    for seed in chosen(given, began):
        again = f"python -m tests.simulation --seed {seed} --hours {given.hours:g}"
        again += f" --calm {given.calm:g}" if given.calm else ""
        history = partial(live, hours=given.hours, ordinary=given.calm * 60)
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


def chosen(given: argparse.Namespace, began: float) -> Iterator[int]:
    """The seeds to live through."""
    *some, last = given.seed or [random.randrange(10**6)]
    yield from some
    number = itertools.count(last)
    if given.seconds is None:
        yield from itertools.islice(number, given.seeds)
    else:
        yield from itertools.takewhile(lambda _: time.monotonic() < began + given.seconds, number)


def one(
    seed: int, history: Callable[[Universe], Awaitable[None]], live_trace: bool
) -> tuple[Universe, BaseException | None]:
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
