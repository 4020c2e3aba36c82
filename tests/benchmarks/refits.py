"""What a refit of eight workers costs: all fenced at once, and by turns.

    python tests/benchmarks/refits.py [--quick] [--rounds N]

Simulated workers, a router in a process of its own, and more clients than workers, so that
requests always wait. Each round has three stretches of the same length: without a refit, with a
refit, and with a rolling refit (two workers at a time).
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import sys
from pathlib import Path

import trio
from attrs import frozen

sys.path[:0] = [str(Path(__file__).resolve().parent)]

from dispatch import call, image, router  # noqa: E402

from simulated_worker import SimulatedWorker, WorkerConfig  # noqa: E402
from simulated_worker import serve as serve_worker  # noqa: E402

FLEET, CLIENTS = 8, 24
LOAD = 1.5  # seconds that a worker takes to load weights from disk
SHORTEST, LONGEST = 0.3, 0.9  # seconds of a generation
STRETCH = 11.0  # seconds; the longest refit ends well before
WINDOW = 1.0

MODES = {"no refit": None, "fenced": "", "rolling, 2 of 8": "?rolling=2"}


@frozen
class Stretch:
    """What came of one stretch. Times are seconds since its beginning."""

    ends: list[float]  # of the generations, in order
    refit: float  # how long the refit took

    @property
    def lowest(self) -> float:
        """The fewest generations that ended within any window, per second."""
        starts = [i / 10 for i in range(round((STRETCH - WINDOW) * 10))]
        return min(sum(s <= end < s + WINDOW for end in self.ends) for s in starts) / WINDOW

    @property
    def pause(self) -> float:
        """The longest time without the end of a generation."""
        times = [0.0, *self.ends, STRETCH]
        return max(later - earlier for earlier, later in itertools.pairwise(times))


async def stretch(port: int, query: str | None, path: str, seed: int) -> Stretch:
    """Clients that ask for one generation after the other, and perhaps a refit."""
    rng = random.Random(seed)
    begun, ends, took = trio.current_time(), [], 0.0

    async def client() -> None:
        while True:
            seconds = rng.uniform(SHORTEST, LONGEST)
            await call(port, "POST", "/v1/images/generations", image(seconds))
            ends.append(trio.current_time() - begun)

    async def refit() -> None:
        nonlocal took
        if query is not None:
            body = {"model_path": path}
            await call(port, "POST", f"/update_weights_from_disk{query}", body)
            took = trio.current_time() - begun

    with trio.move_on_after(STRETCH):
        async with trio.open_nursery() as nursery:
            for _ in range(CLIENTS):
                nursery.start_soon(client)
            nursery.start_soon(refit)
    assert query is None or took, "the refit took longer than the stretch"
    return Stretch(sorted(ends), took)


async def measure(port: int, rounds: int) -> dict[str, list[Stretch]]:
    """The stretches of each mode, measured in turns."""
    found: dict[str, list[Stretch]] = {mode: [] for mode in MODES}
    async with trio.open_nursery() as nursery:
        workers: list[SimulatedWorker] = []
        for _ in range(FLEET):
            config = WorkerConfig(port=0, warmup_seconds=0, load_seconds=LOAD)
            workers.append(await nursery.start(serve_worker, config))
            await call(port, "POST", f"/workers?url={workers[-1].url}")
        await call(port, "POST", "/v1/images/generations", image(0.1))
        for number in range(rounds):
            for mode, query in MODES.items():
                found[mode].append(await stretch(port, query, f"{mode} {number}", number))
                await trio.sleep(LONGEST + 0.5)  # what the clients left behind ends
        for worker in workers:
            worker.kill()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rounds = 1 if options.quick else options.rounds
    with router(["--state-dir", "none"]) as port:
        found = trio.run(measure, port, rounds)
    plain = found["no refit"]
    print(f"\n{FLEET} workers, {LOAD:g} s to load, {rounds} rounds of {STRETCH:g} s\n")
    print("| | generations | lost | slowest second, share | longest pause, s | refit takes, s |")
    print("| --- | --- | --- | --- | --- | --- |")
    for mode, stretches in found.items():
        pairs = list(zip(stretches, plain, strict=True))
        lost = [1 - len(one.ends) / len(other.ends) for one, other in pairs]
        slowest = [one.lowest / (len(other.ends) / STRETCH) for one, other in pairs]
        cells = [
            f"{statistics.median(len(one.ends) for one in stretches):g}",
            f"{100 * statistics.median(lost):.0f} %",
            f"{statistics.median(slowest):.2f}",
            f"{statistics.median(one.pause for one in stretches):.2f}",
            f"{statistics.median(one.refit for one in stretches):.1f}",
        ]
        print(f"| {mode} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
