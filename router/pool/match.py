"""Which workers a request or a call fits, and the error if there is none."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Sequence
from enum import StrEnum
from functools import cached_property
from typing import NamedTuple

from attrs import field, frozen

from ..errors import BadRequest, NotFound, PoolUnavailable, RouterError
from ..front.priority import Priority
from .lifecycle import Lack, hopeful, lack, reachable, reasons
from .pools import absent, members, name_plain, pools_of
from .registry import Registry
from .versions import Asked, Bounds, Passed
from .worker import Health, Task, Worker

# Names and model lists beyond these bounds are not compared: the time grows with both.
_LONGEST_COMPARED, _MOST_COMPARED = 200, 200
_LONGEST_CLIENT = 128  # bytes of an X-Client-Id that count
# Stand-ins for all models that no worker advertises. `_UNSERVED`: no worker is about to.
# `_AWAITED`: a starting worker may.
_UNSERVED, _AWAITED = "", "\0"


class Need(StrEnum):
    """What a request needs from a worker."""

    SLOT = "slot"  # a generation: until the head of its answer
    SESSION = "session"  # a WebSocket: for its length
    JOB = "job"  # a submission: at once, even without a free slot; holds a slot until the job ends
    CALL = (
        "call"  # anything else that may change something: no slot, but it must end before a drain
    )
    NOTHING = "nothing"  # anything else


NEED_SLOT = (Need.SLOT, Need.SESSION)  # needs a free slot
_BY_MODEL = (*NEED_SLOT, Need.JOB)


class Wants(NamedTuple):
    """The part of a request that decides which workers fit."""

    model: str | None
    task: Task | None
    strict: bool  # only a worker that can do the task fits: a job
    by_model: bool  # a worker of another model may not fit: true for everything that generates
    version: Bounds | None  # which weights will do: decides when a worker may serve, not which
    pool: str | None = None  # only workers of this pool fit
    # The fitting workers must belong to one pool: those of another have weights of their own.
    sole: bool = False


@frozen
class Facts:
    """The routing facts of a request."""

    model: str | None = None
    task: Task | None = None
    need: Need = Need.SLOT
    client: str = ""  # requests of different clients share the slots in turn
    work: float = 1.0  # units of work (pool.cost)
    kind: str = ""  # the kind of endpoint, as speeds are learnt
    asked: Asked | None = None  # what the request says of the weights, before it is looked up
    bounds: Bounds | None = None  # which weights will do; None: any current weights
    group: str = ""  # by which waiting requests are cancelled together
    priority: Priority = Priority.NORMAL  # among the requests that wait for the same workers
    pool: str | None = None  # the pool that the request names
    sole: bool = False  # weights matter: see `Wants.sole`

    wants: Wants = field(init=False, repr=False, eq=False)

    @wants.default
    def _wants(self) -> Wants:
        need = self.need
        by_model = need in _BY_MODEL
        sole = by_model and (self.sole or self.asked is not None or self.bounds is not None)
        bounds, pool = self.bounds, self.pool
        return Wants(self.model, self.task, need is Need.JOB, by_model, bounds, pool, sole)


def client_class(client_id: bytes) -> str:
    """The client class that an `X-Client-Id` names."""
    return client_id[:_LONGEST_CLIENT].decode("latin-1")


class NoCapableWorker(BadRequest):
    """No registered worker can do the task, in any state."""

    default_code = "no_capable_worker"


class AmbiguousModel(BadRequest):
    """Several models fit, and the request names none of them."""

    default_code = "ambiguous_model"


class AmbiguousTarget(AmbiguousModel):
    """Workers with different weights fit, and the request does not say which it means."""

    default_code = "ambiguous_target"


class UnknownModel(NotFound):
    """No worker serves the model that the request names."""

    default_code = "unknown_model"

    def __init__(self, model: str, pool: Iterable[Worker]) -> None:
        pool = tuple(pool)
        names = [name for w in pool if w.capabilities for name in w.capabilities.models]
        near = nearest(model, names)
        hint = f"; did you mean {near!r}?" if near is not None else ""
        super().__init__(
            f"No worker serves the model {_short(model)!r}{hint}",
            details={"models": models_of(pool), "nearest": near},
        )


# Models.


def models_of(workers: Iterable[Worker]) -> list[str]:
    """The models that the workers serve, one name for each, in order of appearance.

    A worker may list its model under several names; the first counts.
    """
    names = dict.fromkeys(model_of(worker) for worker in workers)
    return [name for name in names if name is not None]


def model_of(worker: Worker) -> str | None:
    """The name under which the worker serves its model; None if unknown."""
    can = worker.capabilities
    return can.models[0] if can and can.models else None


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The name most similar to `name`: equal except for case, or nearly equal."""
    some = list(dict.fromkeys(names))
    for one in some:
        if one.casefold() == name.casefold():
            return one
    if len(name) > _LONGEST_COMPARED:
        return None
    by_folded = {
        one.casefold(): one for one in some[:_MOST_COMPARED] if len(one) <= _LONGEST_COMPARED
    }
    close = difflib.get_close_matches(name.casefold(), by_folded, n=1)
    return by_folded[close[0]] if close else None


def ambiguous(models: list[str], pools: list[str], *, ids: bool = False) -> AmbiguousTarget:
    """The error for a target that may be any of these models or pools. `ids`: it may also be named
    by the ids of workers."""
    several = len(models) > 1
    what = f"several models ({_some(models)})" if several else f"several pools ({_some(pools)})"
    ways = ["a model with ?model="] * several + ["a pool with ?pool="] * (len(pools) > 1)
    ways += ["workers with ?workers=ID,ID"] * ids
    details: dict[str, object] = {"models": models}
    if len(pools) > 1:
        details["pools"] = pools
    return AmbiguousTarget(
        f"The request fits {what}: name {', or '.join(ways)}",
        details=details,
    )


def _some(names: list[str]) -> str:
    return ", ".join(map(_short, names[:10])) + (", ..." if len(names) > 10 else "")


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_COMPARED else f"{name[:_LONGEST_COMPARED]}..."


# Requests.


class Candidates:
    """Which of these workers fit a request, by their present state.

    Results are cached. Make a new object when a worker joins, leaves, changes its role or tells its
    capabilities, and when a worker that has not told them gains or loses hope. `pool`: only the
    workers of this pool; without it, all except plain HTTP workers.
    """

    def __init__(
        self, workers: Iterable[Worker], *, strict_model: bool = False, pool: str | None = None
    ) -> None:
        self._all = tuple(workers)
        self._workers = tuple(members(self._all, pool))
        self._strict_model = strict_model
        self._found: dict[Wants, tuple[Worker, ...]] = {}
        self._pools: dict[str, Candidates] = {}

    def _of_pool(self, pool: str) -> Candidates | None:
        """The candidates within one pool; None if no worker belongs to it."""
        if pool not in self._pools and any(worker.pool == pool for worker in self._all):
            self._pools[pool] = Candidates(self._all, strict_model=self._strict_model, pool=pool)
        return self._pools.get(pool)

    # Both are lazy: at a start a thousand workers join one after the other.
    @cached_property
    def _unread(self) -> tuple[Worker, ...]:
        return tuple(w for w in self._workers if w.capabilities is None and hopeful(w))

    @cached_property
    def _by_model(self) -> dict[str, list[Worker]]:
        by_model: dict[str, list[Worker]] = {}
        for worker in self._workers:
            for model in worker.capabilities.models if worker.capabilities else ():
                by_model.setdefault(model, []).append(worker)
        return by_model

    def fitting(self, wants: Wants) -> tuple[Worker, ...]:
        """The workers that the request is meant for, routable or not, in order of registration.

        The model binds if some worker advertises it. If no worker does, or the request names no
        model, a generation fits only if the able workers serve one model among them: workers never
        check the model, and clients of a one-model pool often send another name. Images prefer
        workers that make images, and go to other workers only if there are none. If several pools
        fit, a `sole` request fits none.
        """
        if wants.pool is not None:
            part = self._of_pool(wants.pool)
            return () if part is None else part.fitting(wants._replace(pool=None))
        key = self._key(wants)
        found = self._found.get(key)
        if found is None:
            found = self._found[key] = self._fitting(key)
        return found

    def _key(self, wants: Wants) -> Wants:
        """The part of the wants that decides, with stand-ins for models that no worker serves."""
        model = wants.model
        if model is not None and model not in self._by_model:
            unserved = _UNSERVED if self._strict_model and wants.by_model else None
            model = _AWAITED if self._unread else unserved
        return wants._replace(model=model, version=None)

    def _fitting(self, wants: Wants) -> tuple[Worker, ...]:
        found = self._of_model(wants)
        return () if wants.sole and len(pools_of(found)) > 1 else found

    def _of_model(self, wants: Wants) -> tuple[Worker, ...]:
        model = wants.model
        if model == _AWAITED:
            return self._able(self._unread, wants)
        if model:
            return self._able(tuple(self._by_model[model]), wants)
        able = self._able(self._workers, wants)
        enough = 0 if model == _UNSERVED else 1
        return () if wants.by_model and len(models_of(able)) > enough else able

    def misnamed(self, wants: Wants) -> RouterError | None:
        """The error if a request fits no worker because of its pool or model, named or missing."""
        model = wants.model
        if wants.pool is not None:
            part = self._of_pool(wants.pool)
            return None if part is None else part.misnamed(wants._replace(pool=None))
        if not wants.by_model or self.fitting(wants):
            return None
        if found := self._of_model(self._key(wants)):  # then in several pools
            return ambiguous(models_of(found), pools_of(found))
        if model in self._by_model:
            return None
        able = self._able(self._workers, wants)
        models = models_of(able)
        if not models:
            return None
        if model is not None:
            return UnknownModel(model, able)
        if wants.sole:
            return ambiguous(models, pools_of(able))
        return AmbiguousModel(
            f"Several models fit ({_some(models)}): name one as `model` in the body, or with"
            " ?model=",
            details={"models": models},
        )

    def _able(self, pool: tuple[Worker, ...], wants: Wants) -> tuple[Worker, ...]:
        """The workers that can do the task; if none is known to, the workers that might."""
        task = wants.task
        if task is None:
            return pool
        able = tuple(w for w in pool if w.capabilities and w.capabilities.can(task))
        if able:
            return able
        if wants.strict:
            # A worker that has told nothing yet may be able.
            return tuple(w for w in pool if not w.capabilities)
        # Workers of unknown type, and workers about to tell, come before workers known to do other
        # tasks.
        unread = set(self._unread)
        unsure = tuple(
            w for w in pool if (w.capabilities.can(task) is None if w.capabilities else w in unread)
        )
        return unsure or pool


def refusal(pool: Collection[Worker], fitting: Collection[Worker], facts: Facts) -> RouterError:
    """The error for a request whose fitting workers in the pool have no hope."""
    if not pool:
        return PoolUnavailable("No workers are registered", code="no_workers")
    if facts.pool is None and all(worker.is_plain for worker in pool):
        pools = pools_of(pool)
        return PoolUnavailable(
            f"Only plain HTTP workers are registered: {name_plain(pools)}",
            code="no_workers",
            details={"pools": pools},
        )
    if not fitting and facts.need is Need.JOB and facts.task is not None:
        return NoCapableWorker(f"No {facts.task}-capable workers available in current worker pool.")
    bounds = facts.bounds
    lacks = {lack(worker, bounds) for worker in fitting} - {Lack.LIFE}
    if bounds is not None and bounds.exact is not None and fitting:
        past = all(bounds.passed(worker.newest_version) for worker in fitting)
        if past or lacks == {Lack.VERSION}:
            return Passed(bounds)
    if lacks == {Lack.MEMORY}:
        return PoolUnavailable(
            "All fitting workers are asleep: wake them by POST /resume_memory_occupation",
            code="pool_asleep",
        )
    lacks.discard(Lack.MEMORY)
    if lacks and lacks <= {Lack.WEIGHTS, Lack.VERSION}:
        what = f"weights of {bounds}"
        if Lack.VERSION not in lacks:
            what = "the weights it needs (GET /weights gives the reasons)"
        return PoolUnavailable(f"No fitting worker has {what}", code="weights_unavailable")
    return PoolUnavailable("No fitting worker is routable at present", code="no_routable_worker")


# Calls that change weights or memory, or ask about them.


@frozen
class Targets:
    """The workers that a call can reach now, and the workers that it cannot reach now."""

    eligible: Sequence[Worker]
    deferred: Sequence[Worker]

    @classmethod
    def of(cls, chosen: Iterable[Worker], *, awake: bool = False) -> Targets:
        """Split the chosen: eligible are the reachable; with `awake`, only the awake ones."""
        found: tuple[list[Worker], list[Worker]] = [], []
        for worker in chosen:
            found[reachable(worker) and not (awake and worker.is_sleeping)].append(worker)
        return cls(found[True], found[False])

    def deferred_rows(self) -> list[dict[str, object]]:
        """The deferred workers as rows of an answer."""
        return [
            {"worker_url": worker.url, "worker_id": worker.worker_id, "reasons": reasons(worker)}
            for worker in self.deferred
        ]


def select(
    registry: Registry,
    *,
    model: str | None,
    workers: str | None,
    pool: str | None = None,
    mixed: bool = False,
) -> list[Worker]:
    """The workers named by `?model=` or `?workers=ID,ID`, within `?pool=`. Without a name: all
    workers, if they serve one model in one pool or may be `mixed`. Never plain HTTP workers.

    Raises BadRequest (`ambiguous_target`, naming the models and pools), NotFound, PoolUnavailable
    if there are no workers.
    """
    if model is not None and workers is not None:
        raise BadRequest("Give ?model= or ?workers=, not both", code="invalid_field")
    meant = members(registry, pool)
    if error := absent(pool, registry):
        raise error
    if not meant and (workers is None or not len(registry)):
        raise no_workers()
    if workers is not None:
        names = [name.strip() for name in workers.split(",") if name.strip()]
        if not names:
            raise BadRequest("?workers= names no worker", code="invalid_field")
        named = list(dict.fromkeys(map(registry.get, names)))
        for worker in named:
            if pool not in (None, worker.pool):
                raise BadRequest(f"{worker.url} is not in the pool {pool!r}", code="invalid_field")
        return only_sglang(named)
    meant = only_sglang(meant)
    if model is not None:
        chosen = [w for w in meant if w.capabilities and model in w.capabilities.models]
        if not chosen:
            raise UnknownModel(model, meant)
        meant = chosen
    served, pools = [model] if model is not None else models_of(meant), pools_of(meant)
    if not mixed and (len(served) > 1 or len(pools) > 1):
        raise ambiguous(served, pools, ids=True)
    return meant


def only_sglang(workers: list[Worker]) -> list[Worker]:
    """The workers. Raises BadRequest if one is a plain HTTP worker."""
    for worker in workers:
        if worker.is_plain:
            raise BadRequest(
                f"{worker.url} is a plain HTTP worker, without weights or memory to change",
                code="plain_worker",
            )
    return workers


def no_workers(deferred: Sequence[Worker] = ()) -> PoolUnavailable:
    """The error for a call that finds no worker. Healthy ones that must wait are named."""
    if not any(worker.health is Health.HEALTHY for worker in deferred):
        return PoolUnavailable("No healthy workers available in the pool", code="no_workers")
    return PoolUnavailable(
        "No worker can take this call now; `deferred` has the reasons of each",
        code="no_workers",
        details={"deferred": Targets((), deferred).deferred_rows()},
    )
