"""The router among its workers and clients: its lives, one after the other, and ways to ask it."""

from __future__ import annotations

import contextlib
import math
import random
import ssl
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from unittest import mock

import trio
from attrs import define, field

from router import service
from router.pool.lifecycle import routable
from router.settings import RouterSettings
from router.store.store import Store
from tests.simulation import http
from tests.simulation.disk import Disk
from tests.simulation.http import Answer
from tests.simulation.network import Cut, Link, Network
from tests.simulation.runs import Runs
from tests.simulation.themes import Theme
from tests.simulation.transport import made as transport_in
from tests.simulation.truth import DISK, Change, Spy, Truth
from tests.simulation.universe import LIFE, Countdown, Life, Universe, Wrong
from tests.simulation.worker import Process, Worker

# Of the router. Short, so that a history sees many of their ends.
SETTINGS: dict[str, Any] = {
    "host": "127.0.0.1",
    "timeout": 40.0,
    "queue_timeout": 60.0,
    "idle_timeout": 30.0,
    "drain_timeout": 40.0,
    "refit_timeout": 30.0,
    "shutdown_timeout": 10.0,
    "ejection_max_pause": 5.0,
}
# Within which everything must be answered: for each of its tries a request may wait in the queue,
# for a connection, and for its answer; a change waits for those before it, a drain, and its calls.
PATIENCE = 4 * (60 + 5 + 40 + 30)
OPERATION = 300.0
JOBS = 2000.0  # the longest that come together at a worker
_TLS = ssl.create_default_context()
_LAZY = 1.0  # seconds until the router has surely noted on its disk what nobody waits for


@define(eq=False)
class Router:
    """The router's machine: one life at a time, and the disk that outlives them."""

    universe: Universe
    network: Network
    disk: Disk
    up: trio.Event = field(factory=trio.Event)
    life: Life | None = None
    running: Any = None
    lives: int = 0
    crashes: int = 0
    crash_at_answer: bool = False  # at the next that acknowledges something
    run_id: str | None = None
    fresh_weights: bool = False
    stop: trio.Event | None = None
    over: trio.Event = field(factory=trio.Event)  # the present life is

    def note(self, what: str) -> None:
        self.universe.note("the router", what)

    def incarnation(self, worker: Worker) -> int:
        """How many processes it has counted at the worker; 0: it does not know the worker."""
        known = None if self.running is None else self.running.parts.registry.find(worker.url)
        return 0 if known is None else int(known.incarnation)

    async def start(self) -> None:
        """A new life."""
        self.lives += 1
        self.life = life = Life(self.lives)
        dice = self.universe.dice(f"threads of life {life.number}")
        life.thread_delay = lambda: dice.uniform(0, 0.004) + dice.uniform(0, self.disk.slow)
        self.note(f"life {life.number} begins")
        try:
            await self.network.nursery.start(self._live, life)
        except (RuntimeError, OSError) as error:
            # It crashed before it listened, or its disk would not do.
            if isinstance(error, RuntimeError) and not life.crashed:
                raise
            self.note(f"cannot start: {error}")
            await trio.sleep(1)
            await self.start()
            return
        self.note("it listens")
        self.up.set()

    async def _live(self, life: Life, *, task_status: trio.TaskStatus[None]) -> None:
        LIFE.set(life)
        self.over = over = trio.Event()
        self.stop = stop = trio.Event()
        try:
            store = Store.open(self.disk.folder)
            listener = self.network.open_front(life)

            def unlisten() -> None:
                if listener.fileno() != -1:
                    trio.lowlevel.notify_closing(listener)
                    listener.close()

            life.on_crash["front"] = unlisten
            with life.scope:
                async with trio.open_nursery() as nursery:
                    serve = service.serve
                    said = {"run_id": self.run_id, "fresh_weights": self.fresh_weights}
                    settings = RouterSettings(port=0, **said, **SETTINGS)
                    self.running = await nursery.start(serve, settings, [listener], stop, store, [])
                    Spy(self.universe).begin(self.running.parts.registry)
                    task_status.started()
        except BaseException:
            if not life.crashed:
                raise
        finally:
            life.dead = True
            if self.up.is_set():  # else others wait for it
                self.up = trio.Event()
            over.set()

    async def crash(self, steps: int = 0) -> None:
        """End it like kill -9, after so many steps of its tasks."""
        life = self.life
        assert life is not None
        if steps:
            countdown = Countdown(life, steps)
            trio.lowlevel.add_instrument(countdown)
            with trio.move_on_after(5):
                await self.over.wait()
            trio.lowlevel.remove_instrument(countdown)
        self.note("is killed")
        self.crashes += 1
        life.crash()
        await self.over.wait()


@define(eq=False)
class World:
    """All there is. `over` is set when the breaking ends."""

    universe: Universe
    network: Network
    router: Router
    disk: Disk
    workers: list[Worker]
    adapted: list[Worker] = field(factory=list)  # those of a pool with LoRAs
    meetings: dict[str, Any] = field(factory=dict)  # of workers in collectives, by label
    truth: Truth = field(factory=Truth)
    runs: Runs = field(init=False)
    over: trio.Event = field(factory=trio.Event)
    round: int = 0
    theme: Theme = field(factory=Theme)
    asking: dict[object, str] = field(factory=dict)  # what waits for an answer
    members: set[str] = field(factory=set)  # names of workers whose registration was acknowledged
    painting: dict[str, float] = field(factory=dict)  # requests without an answer, since when
    changes: int = 0  # made by operators
    submitting: int = 0  # videos, of which nobody knows yet that a worker has them
    operating: int = 0  # operations under way
    operated: float = 0.0  # when the last one ended
    disturbed: float = -math.inf  # when something happened to the router
    blind: int = 0  # what happens to it just now
    replayable: bool = True  # the weights; else workers wait for others
    sleepers: set[str] = field(factory=set)  # and their sleep, before anybody has woken them
    changing: int = 0  # changes under way
    # By name of a worker, the process that surely has the weights of the model's version.
    proven: dict[str, Process] = field(factory=dict)
    _moment: trio.Event = field(init=False, factory=trio.Event)  # replaced after each
    _victim: Worker | None = field(init=False, default=None)  # whom the last one was about
    outcomes: Counter[str] = field(factory=Counter)
    link: Link = field(init=False)  # of whoever asks from beside the router

    def __attrs_post_init__(self) -> None:
        self.link = Link(self.universe.dice("clients"), delay=0.0005)
        self.runs = Runs(self.router.incarnation)

    def note(self, who: str, what: str) -> None:
        self.universe.note(who, what)

    def dice(self, who: str) -> random.Random:
        """The chance of one actor in this round."""
        return self.universe.dice(f"{who} in round {self.round}")

    async def ask(
        self,
        who: str,
        method: str,
        target: str,
        content: Any = None,
        headers: dict[str, str] | None = None,
        within: float = PATIENCE,
        broken: bool = False,
    ) -> Answer | None:
        """The router's answer; None if it ended first, or if the answer is `broken` off. Raises
        Wrong if none comes in time, else Cut."""
        while not self.router.up.is_set():
            await self.router.up.wait()
        life, asking = self.router.life, object()
        self.asking[asking] = f"{who} since {self.universe.now:.0f}: {method} {target}"
        try:
            with trio.fail_after(within):
                answer = await http.ask(self.network, self.link, method, target, content, headers)
            acknowledged = method != "GET" and answer.status == 200
            if self.router.crash_at_answer and acknowledged and "/images/" not in target:
                self.note("the router", f"ends: it has answered {target}")
                self.router.crash_at_answer = False
                if life is not None:
                    life.crash()
            return answer
        except Cut:
            stopping = self.router.stop is not None and self.router.stop.is_set()
            if broken or life is None or life.dead or stopping:
                return None
            raise
        except trio.TooSlowError:
            raise Wrong(f"{who}: {method} {target} had no answer within {within:g} s") from None
        finally:
            del self.asking[asking]

    def may_generate(self, worker: Worker) -> None:
        """Raises Wrong."""
        if worker.name in self.sleepers:
            raise Wrong(f"{worker.name} was put to sleep, nobody has woken it, and it generates")
        # Until weights were changed a worker serves on while it may be another process, and what
        # that one has is not known.
        if (worker.truth or self.truth).versions and worker.full(self.router.life):
            raise Wrong(f"all slots of {worker.name} are taken, and it gets another generation")

    def may_change(self, worker: Worker) -> None:
        """Raises Wrong."""
        if not self.changing and self.has_latest(worker):
            raise Wrong(f"{worker.name} is sent weights that it has, and nobody has asked for it")

    def may_have_other_weights(self, worker: Worker) -> None:
        """Its weights are about to change: the router must not be about to give it work. Raises
        Wrong."""
        life = self.router.life
        if life is None or life.dead or not self.router.up.is_set():
            return
        known = self.router.running.parts.registry.find(worker.url)
        if known is not None and routable(known):
            raise Wrong(f"{worker.name} gets other weights, and counts as routable")

    def has_latest(self, worker: Worker) -> bool:
        """Whether the router must know that the worker has the weights of the model's version: it
        has said so itself, nothing has come between, and what it has made since is on the disk."""
        process = worker.process
        proven = process is not None and self.proven.get(worker.name) is process
        return proven and process.witnessed and worker.name in self.members

    @contextlib.contextmanager
    def change(self) -> Iterator[None]:
        """A change is under way; `prove` tells what came of it."""
        self.changing += 1
        try:
            yield
        finally:
            self.changing -= 1

    def prove(self, changed: Iterable[Worker], change: Change) -> None:
        """The model has new weights, or may have; these workers surely."""
        before, self.proven = self.proven, {}
        for worker in changed:
            process = worker.process
            alone = self.changing == 1 and not (worker.handled or worker.taken)
            # Nobody can tell whether tensors are all there are, unless it is said.
            has_all = change.full or (change.whole and change.path == DISK)
            had_all = has_all or before.get(worker.name) is process
            loaded = process is not None and change.label in process.weights.modules
            sure = alone and had_all and loaded and self.truth.is_current(change)
            if sure and process is not None:
                self.proven[worker.name] = process

    def tell(self, worker: Worker | None) -> None:
        """This would be the worst moment to disturb the worker, or the router."""
        self._victim = worker
        self._moment.set()
        self._moment = trio.Event()

    async def opportunity(
        self, dice: random.Random, seconds: float, *, victim: bool
    ) -> Worker | None:
        """Pause; then perhaps wait for a bad moment, for a worker (`victim`) or for the router."""
        await self.pause(seconds)
        if dice.random() >= self.theme.aim:
            return None
        with trio.move_on_after(10):
            while not self.over.is_set():
                await self._moment.wait()
                if victim is (self._victim is not None):
                    break
            found = self._victim
            await self.pause(dice.choice([0.0, 0.0, 0.02, 1.0]) * dice.random())
            return found
        return None

    @contextlib.contextmanager
    def operation(self) -> Iterator[None]:
        self.operating += 1
        try:
            yield
        finally:
            self.operating -= 1
            self.operated = trio.current_time()

    @contextlib.contextmanager
    def trouble(self) -> Iterator[None]:
        """Something is done to the router or its disk."""
        self.blind += 1
        for worker in (*self.workers, *self.adapted):
            if worker.process is not None:
                worker.process.unsure(_LAZY)
        try:
            yield
        finally:
            self.blind -= 1
            self.disturbed = trio.current_time()

    @contextlib.contextmanager
    def handling(
        self, some: Iterable[Worker], *, away: bool = True, blocks: bool = True
    ) -> Iterator[None]:
        """Something is done to these workers. `away`: they may be out of the pool meanwhile;
        `blocks`: nobody else may do something to them."""
        for worker in some:
            worker.handled += 1
            worker.engaged += blocks
            worker.away += away
            self.proven.pop(worker.name, None)
        try:
            yield
        finally:
            for worker in some:
                worker.handled -= 1
                worker.engaged -= blocks
                worker.away -= away
                worker.disturbed = trio.current_time()
                if away:
                    worker.moved = worker.disturbed

    async def pause(self, seconds: float) -> None:
        """Sleep, at most until it is over."""
        with trio.move_on_after(seconds):
            await self.over.wait()


async def until(condition: Callable[[], object], every: float = 0.1) -> None:
    while not condition():
        await trio.sleep(every)


@contextlib.asynccontextmanager
async def made(universe: Universe) -> Any:
    """The world, all of it serving."""
    with contextlib.ExitStack() as stack:
        async with trio.open_nursery() as nursery:
            network = Network(universe, nursery)
            network.install(stack)
            # Each life would read the certificates of the system anew, and none meets TLS.
            stack.enter_context(mock.patch("ssl.create_default_context", return_value=_TLS))
            transport = mock.patch("httpx.AsyncHTTPTransport", transport_in(network))
            stack.enter_context(transport)
            folder = universe.folder / "state"
            disk = Disk(universe, folder, universe.dice("disk"))
            disk.install(stack)
            router = Router(universe, network, disk)
            workers = [
                Worker(universe, network, f"w{n}", network.host(f"192.0.2.{n + 1}"))
                for n in range(universe.dice("workers").choice([2, 3, 3, 3, 4, 4, 9]))
            ]
            world = World(universe, network, router, disk, workers)
            for worker in workers:
                worker.world = world
            for worker in workers:
                await worker.start()
            await router.start()
            yield world
            await router.crash()
            nursery.cancel_scope.cancel()
