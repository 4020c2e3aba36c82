"""One process of a simulated worker: its weights, its jobs, and what it is about."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import trio
from attrs import define, field, frozen

from sglang.simulated_worker.loras import Loras
from tests.simulation.universe import Life

if TYPE_CHECKING:
    from tests.simulation.worker import Worker

MODEL = "m"
MODULES = ("transformer", "text_encoder")


@frozen
class Weights:
    """What a process would generate with: where each module came from, and the LoRA on top."""

    modules: tuple[str, ...] = (MODEL,) * len(MODULES)
    lora: str = ""

    def loaded(self, path: str, targets: object) -> Weights:
        names = targets if isinstance(targets, list) else MODULES
        pairs = zip(MODULES, self.modules, strict=True)
        return Weights(tuple(path if n in names else m for n, m in pairs), self.lora)

    def worn(self, lora: str) -> Weights:
        return Weights(self.modules, lora)

    def told(self) -> dict[str, Any]:
        return {"modules": list(self.modules), "lora": self.lora}

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Weights:
        return cls(tuple(told["modules"]), told["lora"])


@define(eq=False)
class Faults:
    """What goes wrong at a worker, until somebody ends it."""

    failing: float = 0.0  # the share of generations that fail
    cutting: float = 0.0  # and of answers that break off
    slow_health: float = 0.0  # seconds
    slow: float = 1.0  # how much longer everything takes
    next_update: str = ""  # what becomes of the next update: none, partial, applied, hang
    dead_backend: bool = False


@define(eq=False)
class Process:
    """One process of a worker."""

    worker: Worker
    number: int
    warm_at: float
    weights: Weights = Weights()
    loras: Loras = field(factory=Loras)
    spoilt: bool = False  # by an update that the router took for that of a new process
    asleep: bool = False
    strayed: bool = False  # somebody has put it to sleep past the router
    dozed: tuple[float, Life | None] = (-math.inf, None)  # when it last said to whom that it sleeps
    images: set[str] = field(factory=set)
    jobs: dict[str, dict[str, Any]] = field(factory=dict)
    # Generations that came and are not over: the life of the router that sent each, and how often
    # the way to it had been down by then.
    busy: dict[str, tuple[Life | None, int]] = field(factory=dict)
    unfinished: int = 0  # jobs
    filmed: float = -math.inf  # when the last one ended
    awake_since: float = field(factory=trio.current_time)
    delivered: float = math.inf  # when a client first got an image of it that may testify
    ended: list[tuple[float, float]] = field(factory=list)  # when jobs were submitted, and over
    work: int = 0  # generations, jobs and changes that are not over
    busy_since: float | None = None  # while there are any
    scheduler: trio.Lock = field(factory=trio.Lock)
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    thawed: trio.Event = field(factory=trio.Event)
    door: trio.Lock = field(factory=trio.Lock)  # what came while it was frozen stands in line
    nursery: trio.Nursery | None = None

    def __attrs_post_init__(self) -> None:
        self.thawed.set()

    @property
    def witnessed(self) -> bool:
        """Whether it has made something of which the router surely has a note."""
        return trio.current_time() - self.delivered > 1

    def unsure(self, seconds: float) -> None:
        """What it has made in the last seconds may not have come to the router's disk."""
        if trio.current_time() - self.delivered < seconds:
            self.delivered = math.inf

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        if not self.work:
            self.busy_since = trio.current_time()
        self.work += 1
        try:
            yield
        finally:
            self.work -= 1
            if not self.work:
                self.busy_since = None
