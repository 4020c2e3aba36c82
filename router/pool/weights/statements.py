"""Knowledge from outside the router: which weights workers have, and when a run begins anew.

No I/O.
"""

from __future__ import annotations

from collections.abc import Iterable

from attrs import evolve

from ..worker import Worker
from .ledger import Change, Ledger
from .recipe import Recipe
from .state import at_version, lost_by
from .view import LedgerView


class Statements(LedgerView):
    """The part of `Ledgers` that takes somebody's word."""

    def attest(
        self, model: str, version: int, label: str | None, workers: Iterable[Worker] | None
    ) -> None:
        """Record that these workers have this version of the ledger. With None all workers have it,
        and it becomes the ledger's own, whatever was there before (the operator's way out)."""
        ledger = self.ledger(model)
        if workers is None:
            workers = self.workers_of(model)
            if version != ledger.version:
                ledger.recipe = Recipe() if version == 0 else Recipe().then_opaque(version)
                ledger.since = ledger.issued
            self._drop_pending(ledger)
            ledger.version, ledger.issued = version, max(ledger.issued, version)
            ledger.last_error = None
            ledger.former.clear()
            for url, known in self._left.items():
                if known.model == model and not known.ended:
                    known.state = at_version(ledger, version, known.state.wrapped)
                    self._store.put(known.record(url))
        if label is not None and version == ledger.version:
            ledger.name(label)
        self._store.put(ledger)
        for worker in workers:
            self._take_at_word(worker, ledger, version)
        self._settle_all(model)

    def begin_anew(self, model: str) -> bool:
        """A new run begins: the weights of a start are current again. Issued numbers are never
        issued again. A worker that may have other weights gets those of its start before it
        serves. A change under way gets no version. Returns whether there was any change."""
        ledger = self.ledger(model)
        under_way = {k.change for k in self._known.values() if k.change and k.model == model}
        if not ledger.live and not under_way:
            return False
        for change in under_way:
            change.outdated = True
            self._store.delete(Change, change.change_id)
        self._drop_pending(ledger)
        ledger.recipe, ledger.since, ledger.version = Recipe(), ledger.issued, 0
        ledger.label = ledger.last_error = None
        ledger.labels = {}
        ledger.former.clear()
        self._store.put(ledger)
        everywhere = [*((w.url, k) for w, k in self._known.items()), *self._left.items()]
        for url, known in everywhere:
            if known.model in (model, None) and not known.ended:
                has, known.failure, known.reason = known.state, None, None
                base, loras = (0 if part == 0 else None for part in (has.base, has.loras))
                known.state = evolve(has, base=base, loras=loras)
                doubt = lost_by(known.state, known.change) if known.change else None
                self._store.put(known.record(url, doubt))
        self._settle_all(model)
        return True

    def _drop_pending(self, ledger: Ledger) -> None:
        for change in list(ledger.pending):
            self._store.delete(Change, change.change_id)
            ledger.give_up(change)

    def claim(self, worker: Worker, version: int) -> None:
        """Record the version that the worker's owner claims (`POST /workers {"weight_version":
        N}`)."""
        self._of(worker).claim = version
        if worker.capabilities is not None:  # else the claim is about the process that will answer
            self._take_claim(worker)
        self._settle(worker)

    def _take_claim(self, worker: Worker) -> None:
        """Accept the owner's claim once it is certain which process and ledger it is about."""
        known, ledger = self._of(worker), self.ledger_of(worker)
        if known.claim is not None and ledger is not None and worker.suspicion is None:
            claim, known.claim = known.claim, None
            self._take_at_word(worker, ledger, claim)

    def _take_at_word(self, worker: Worker, ledger: Ledger, version: int) -> None:
        known = self._of(worker)
        if version <= ledger.issued:
            known.failure = known.reason = None
            known.waits = False
            known.version = version
            self._put(worker, at_version(ledger, version, known.state.wrapped))
