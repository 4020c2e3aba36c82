"""Which workers fit a request."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from functools import cached_property
from typing import TypeAlias

from attrs import frozen

from ..errors import RouterError
from .lifecycle import hopeful
from .models import UnknownModel, ambiguous, models_of
from .worker import Task, Weights, Worker


class Need(StrEnum):
    """What a request needs of a worker."""

    SLOT = "slot"  # a generation: until the head of its answer
    SESSION = "session"  # a WebSocket: for its length
    JOB = "job"  # a submission: at once, whatever runs there; it holds a slot until the job ends
    CALL = (
        "call"  # anything else that may change something: no slot, but it must end before a drain
    )
    NOTHING = "nothing"  # anything else


@frozen
class Facts:
    """What routing needs to know of a request."""

    model: str | None = None
    task: Task | None = None
    need: Need = Need.SLOT
    client: str = ""  # requests of different clients share the slots in turn
    work: float = 1.0  # units of work (pool.cost)
    kind: str = ""  # the kind of endpoint, as speeds are learnt
    min_version: int = 0  # of the weights that will do; 0: any that are current

    @property
    def wants(self) -> Wants:
        """All of it that says which workers fit."""
        need = self.need
        return self.model, self.task, need is Need.JOB, self.min_version, need in _BY_MODEL


# Model, task, whether a worker that cannot do the task is no use (that of a job), the oldest
# weights that will do, and whether a worker of another model may be no use (that of whatever
# generates). The oldest weights say nothing of who is meant, only of when he will do.
Wants: TypeAlias = tuple[str | None, Task | None, bool, int, bool]

_BY_MODEL = (Need.SLOT, Need.SESSION, Need.JOB)
_UNSERVED = ""  # stands for all models that nobody advertises


def may_have(worker: Worker, version: int) -> bool:
    """Whether the worker has weights of that version or later, or may come to have them without
    anyone acting: those of its ledger, which it is about to be given."""
    return (
        worker.weight_version >= version
        or worker.weights in (Weights.BEHIND, Weights.UPDATING)
        or worker.capabilities is None  # then it is not known yet of which ledger it is
    )


class Candidates:
    """Which of these workers fit a request, as they are now.

    What it finds is kept: make a new one when a worker joins, leaves, or tells what it can do,
    and when one that has not told that yet gains or loses hope.
    """

    def __init__(self, workers: Iterable[Worker], *, strict_model: bool = False) -> None:
        self._workers = tuple(workers)
        self._strict_model = strict_model
        # Whatever the version.
        self._found: dict[tuple[Wants, bool], tuple[Worker, ...]] = {}

    # Both only when somebody asks: at a start a thousand workers join one after the other.
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

    def common(self, wants: Wants) -> Wants:
        """The same for all that are served alike: all models that nobody advertises."""
        model, task, strict, version, by_model = wants
        if model is not None and model not in self._by_model:
            model = _UNSERVED if self._strict_model and by_model else None
        return model, task, strict, version, by_model

    def awaited(self, wants: Wants) -> bool:
        """Whether a worker that may turn out to advertise the model is still starting."""
        model = wants[0]
        return model is not None and model not in self._by_model and bool(self._unread)

    def fitting(self, wants: Wants) -> tuple[Worker, ...]:
        """The workers that are meant, routable or not, in order of registration.

        The model binds if some worker advertises it. If none does, or none is named, a generation
        fits only workers that serve one model among them: workers never check it themselves, and
        clients of a one-model pool often send another name. Images prefer workers that make images
        and go to others only if there are none.
        """
        model, task, strict, _, by_model = self.common(wants)
        key = (model, task, strict, 0, by_model), self.awaited(wants)
        found = self._found.get(key)
        if found is None:
            found = self._found[key] = self._fitting(*key)
        return found

    def _fitting(self, wants: Wants, awaited: bool) -> tuple[Worker, ...]:
        model, task, strict, _, by_model = wants
        if model:
            return self._able(tuple(self._by_model[model]), task, strict)
        if awaited:
            return self._able(self._unread, task, strict)
        able = self._able(self._workers, task, strict)
        enough = 0 if model == _UNSERVED else 1
        return () if by_model and len(models_of(able)) > enough else able

    def misnamed(self, wants: Wants) -> RouterError | None:
        """Why a request fits nobody, if it is because of the model that it names or does not."""
        model, task, strict, _, by_model = wants
        if not by_model or model in self._by_model or self.awaited(wants) or self.fitting(wants):
            return None
        able = self._able(self._workers, task, strict)
        if not models_of(able):
            return None
        return ambiguous(able) if model is None else UnknownModel(model, able)

    def _able(
        self, pool: tuple[Worker, ...], task: Task | None, strict: bool
    ) -> tuple[Worker, ...]:
        """Those of the pool that can do the task; if none is known to, those that might."""
        if task is None:
            return pool
        able = tuple(w for w in pool if w.capabilities and w.capabilities.can(task))
        if able:
            return able
        if strict:
            # One that has told nothing yet may be what is wanted.
            return tuple(w for w in pool if not w.capabilities)
        # Of no known type, or about to tell: better than one that is known to do other things.
        unread = set(self._unread)
        unsure = tuple(
            w for w in pool if (w.capabilities.can(task) is None if w.capabilities else w in unread)
        )
        return unsure or pool


def fitting(workers: Iterable[Worker], facts: Facts) -> list[Worker]:
    """The workers that a request with these facts is meant for, routable or not."""
    return list(Candidates(workers).fitting(facts.wants))
