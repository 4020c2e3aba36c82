"""Sleep and wake under any order of calls and mishaps: the GPU of a sleeper stays given away."""

from __future__ import annotations

from collections import Counter
from typing import Any

import trio
from attrs import Factory, define
from hypothesis import given, settings
from hypothesis import strategies as st

from router.errors import RouterError
from router.pool import events
from router.pool.lifecycle import AdminEvent, routable
from router.pool.worker import Admin, Lease, Memory, Worker
from tests.unit.control.naps import BROKEN, HANGS, REFUSED, Nap, answer, play, settle

MISHAPS = {
    "500": answer(500),
    "broken": BROKEN,
    "refused": REFUSED,
    "hangs": HANGS,
    "still awake": answer(400, success=False, sleeping=False),
    "still asleep": answer(400, success=False, sleeping=True),
}
OPS = st.one_of(
    st.tuples(st.sampled_from(["sleep", "wake"]), st.sets(st.integers(0, 2), min_size=1)),
    st.tuples(
        st.sampled_from(["ill", "well", "replace", "quarantine", "clear", "busy", "idle", "leave"]),
        st.integers(0, 2),
    ),
    st.tuples(st.just("mishap"), st.tuples(st.integers(0, 2), st.sampled_from(sorted(MISHAPS)))),
    st.tuples(st.just("pause"), st.sampled_from([0.0005, 0.5, 20.0, 2000.0])),
    st.tuples(st.just("disk"), st.booleans()),
)


@define(eq=False)
class Watch:
    """Who has been told that a worker sleeps, and has not asked for it since."""

    nap: Nap
    workers: list[Worker]
    given_away: set[Worker] = Factory(set)
    wakes: Counter[Worker] = Factory(Counter)
    leases: list[Lease] = Factory(list)
    calls: int = 0

    def on_event(self, event: events.Event) -> None:
        match event:
            case events.FacetChanged(worker, facet="memory", new=Memory.AWAKE):
                assert worker not in self.given_away, "nobody woke it"
        for worker in self.given_away:
            assert not routable(worker)

    async def call(self, path: str, named: list[Worker]) -> None:
        self.calls += 1
        name = str(self.calls)
        if path == "wake":
            self.given_away.difference_update(named)
            self.wakes.update(named)
        before = self.wakes.copy()
        await getattr(self.nap, path)(name, *named)
        if path == "wake":
            return
        outcome = self.nap.outcomes.pop(name)
        if isinstance(outcome, RouterError):
            return
        body: dict[str, Any] = outcome[1]
        failed = {
            row["worker_url"]
            for row in body.get("results", ())
            if row["status_code"] != 200 or row["body"].get("sleeping") is not True
        }
        for worker in named:
            if worker.url not in failed and self.wakes[worker] == before[worker]:
                self.given_away.add(worker)

    def happen(self, op: str, worker: Worker) -> None:
        nap = self.nap
        match op:
            case "ill":
                nap.fall_ill(worker)
            case "well":
                nap.recover(worker)
            case "replace":
                self.leases = [lease for lease in self.leases if lease.worker is not worker]
                nap.replace(worker)
            case "quarantine":
                nap.registry.administer(worker, AdminEvent.QUARANTINE)
            case "clear":
                nap.registry.administer(worker, AdminEvent.CLEAR)
            case "busy" if routable(worker):
                self.leases.append(nap.busy(worker))
            case "idle":
                for lease in [lease for lease in self.leases if lease.worker is worker]:
                    self.leases.remove(lease)
                    lease.release()


@settings(settings.get_profile("router"), max_examples=150)
@given(st.lists(OPS, max_size=25))
def test_whatever_happens(ops: list[tuple[str, Any]]) -> None:
    async def body(nap: Nap) -> None:
        workers = [nap.add(name) for name in "abc"]
        for worker in workers:
            nap.engine(worker).takes = 0.3
        watch = Watch(nap, workers)
        nap.registry.subscribe(watch.on_event)
        async with trio.open_nursery() as clients:
            for op, what in ops:
                match op:
                    case "sleep" | "wake":
                        clients.start_soon(watch.call, op, [workers[i] for i in sorted(what)])
                        await settle()
                    case "mishap":
                        nap.engine(workers[what[0]]).script.append(MISHAPS[what[1]])
                    case "pause":
                        await trio.sleep(what)
                    case "disk":
                        nap.disk.failing = "full" if what else None
                    case "leave":
                        clients.cancel_scope.cancel()
                        break
                    case _:
                        watch.happen(op, workers[what])
            # The faults stop.
            nap.disk.failing = None
            for worker in workers:
                nap.engine(worker).script.clear()
                watch.happen("idle", worker)
                if worker.admin is Admin.QUARANTINED:
                    watch.happen("clear", worker)
                watch.happen("well", worker)
        await trio.sleep(5000)
        for worker in workers:
            assert worker.memory in (Memory.AWAKE, Memory.ASLEEP)
            assert not nap.operations.busy(worker)
            assert all(
                idle or path.startswith("/resume")
                for idle, (_, path) in zip(
                    nap.engine(worker).idle, nap.engine(worker).asked, strict=True
                )
            )
            if worker in watch.given_away:
                assert worker.memory is Memory.ASLEEP
                assert nap.engine(worker).asleep
            if worker.memory is Memory.AWAKE:
                assert not nap.engine(worker).asleep
            assert (worker.url in nap.disk.records) == (worker.memory is Memory.ASLEEP)
        await nap.sleep("last sleep", *workers)
        assert all(nap.engine(worker).asleep for worker in workers)
        watch.given_away.clear()
        await nap.wake("last wake", *workers)
        assert all(map(routable, workers))

    play(body)
