"""Single promises of the queue; tests/property/test_queue.py tries everything at once."""

from __future__ import annotations

import random
from collections import Counter

from attrs import evolve

from router.pool.cost import Speeds
from router.pool.lifecycle import AdminEvent, Probe
from router.pool.lines import Waiting
from router.pool.match import Facts, Need
from router.pool.policies import make
from router.pool.queue import Queue
from router.pool.registry import Registry
from router.pool.worker import Capabilities, Hold, HoldKind, Lease, Origin, Task, Worker

ROLLOUT = Facts(kind="rollout")
IMAGE = Facts(task=Task.IMAGE, kind="image")


class Pool:
    """A registry and its queue. `grants` tells who got what, in order."""

    def __init__(self, most_jobs: int = 100) -> None:
        self.registry = Registry()
        self.grants: list[Waiting] = []
        self.running: dict[Worker, list[Lease]] = {}
        self.refused: list[tuple[Waiting, bool]] = []
        policy = make("least-request", Speeds(), random.Random(1))
        self.queue = Queue(policy, policy, lambda: self.registry, self.take, self.refuse, most_jobs)
        self.registry.subscribe(self.queue.on_event)

    def refuse(self, waiting: Waiting, full: bool) -> None:
        self.refused.append((waiting, full))

    def take(self, waiting: Waiting, worker: Worker) -> None:
        self.grants.append(waiting)
        need = waiting.facts.need
        hold = Hold(worker, worker.incarnation, HoldKind.GENERATION, job=need is Need.JOB)
        lease = self.registry.lease(worker, hold if need is not Need.NOTHING else None)
        self.running.setdefault(worker, []).append(lease)

    def worker(self, name: str, *tasks: str, model: str = "m", slots: int = 1) -> Worker:
        worker = self.registry.add(f"http://{name}", Origin.STATIC, concurrency=slots)
        can = Capabilities(models=(model,), task_types=tasks or ("T2I",))
        self.registry.learned(worker, can)
        self.registry.probed(worker, Probe.OK)
        return worker

    def ask(self, facts: Facts, client: str = "", rank: float = 0, *tried: Worker) -> Waiting:
        waiting = Waiting(evolve(facts, client=client), rank, 0.0, frozenset(tried))
        self.queue.add(waiting)
        return waiting

    def end(self, worker: Worker) -> Waiting | None:
        """End what has run longest there; what was served thereupon."""
        before = len(self.grants)
        self.running[worker].pop(0).release()
        return self.grants[before] if len(self.grants) > before else None


def test_a_burst_does_not_starve_the_single_request_of_another() -> None:
    pool = Pool()
    a, b = pool.worker("a"), pool.worker("b")
    for _ in range(768):
        pool.ask(ROLLOUT, "burst")
    single = pool.ask(IMAGE, "single")  # the same workers, another endpoint
    again = pool.ask(ROLLOUT, "single")
    served = [pool.end(worker) for worker in (a, b, a, b)]
    assert served.index(single) <= 1
    assert served.index(again) <= 3


def test_clients_that_compete_for_some_workers_only_share_these() -> None:
    pool = Pool()
    both = pool.worker("both", "T2I", "T2V")
    pool.worker("video", "T2V")
    for _ in range(300):
        pool.ask(ROLLOUT, "a")  # fits both workers
        pool.ask(IMAGE, "b")  # fits only the first
        pool.ask(IMAGE, "c")
    served = Counter(w.facts.client for _ in range(90) if (w := pool.end(both)))
    # A third each for three clients, though two of them stand in one line.
    assert all(28 <= count <= 32 for count in served.values()), served


def test_who_comes_late_has_no_claim_on_what_was_before() -> None:
    pool = Pool()
    both = pool.worker("both", "T2I", "T2V")
    pool.worker("video", "T2V")
    for _ in range(300):
        pool.ask(ROLLOUT, "a")
    for _ in range(100):
        pool.end(both)
    for _ in range(100):
        pool.ask(IMAGE, "b")
    served = "".join(w.facts.client for _ in range(8) if (w := pool.end(both)))
    assert served in ("abababab", "babababa")


def test_nobody_is_blocked_by_those_who_wait_for_others() -> None:
    pool = Pool()
    pool.worker("x", model="x")
    y = pool.worker("y", model="y")
    for _ in range(5):
        pool.ask(Facts(model="x"))
    waiting = pool.ask(Facts(model="y"))
    assert waiting in pool.grants
    assert y.free_slots == 0


def test_turns_are_kept_when_workers_join_and_leave() -> None:
    pool = Pool()
    worker = pool.worker("a")
    asked = {client: [pool.ask(ROLLOUT, client) for _ in range(3)] for client in "pqr"}
    pool.end(worker)
    pool.end(worker)
    other = pool.worker("b", "T2V")
    pool.registry.remove(other)
    for _ in range(6):
        pool.end(worker)
    assert "".join(waiting.facts.client for waiting in pool.grants) == "ppqrpqrqr"
    for client in "pqr":
        mine = [waiting for waiting in pool.grants if waiting.facts.client == client]
        assert mine == asked[client]


def test_a_model_that_turns_up_takes_over_its_requests() -> None:
    pool = Pool()
    old = pool.worker("old", model="old")
    first = pool.ask(Facts(model="old"))
    named = pool.ask(Facts(model="new"))  # nobody advertises it: anybody will do
    assert pool.grants == [first]
    new = pool.worker("new", model="new")
    assert pool.grants == [first, named]
    assert new.free_slots == 0
    waiting = pool.ask(Facts(model="new"))
    assert pool.end(old) is None
    assert pool.end(new) is waiting


def test_a_worker_with_trouble_gets_nothing_while_there_are_others() -> None:
    pool = Pool()
    a, b = pool.worker("a"), pool.worker("b", slots=2)
    pool.registry.trouble(a, "refused")
    waiting = [pool.ask(ROLLOUT) for _ in range(4)]
    assert pool.grants == waiting[:2]
    assert a.free_slots == 1
    pool.registry.probed(a, Probe.OK)
    assert pool.grants == waiting[:3]
    assert a.free_slots == 0
    # If all have trouble, or are not routable, it is better than nobody.
    pool.end(a)
    assert pool.grants == waiting
    last = pool.ask(ROLLOUT)
    pool.registry.trouble(a, "refused")
    pool.end(a)
    assert last not in pool.grants
    pool.registry.administer(b, AdminEvent.DRAIN)
    assert last in pool.grants


def test_jobs_go_where_there_is_room_for_them() -> None:
    pool = Pool(most_jobs=2)
    a, b = pool.worker("a", "T2V"), pool.worker("b", "T2V")
    ask = Facts(task=Task.VIDEO, need=Need.JOB)
    for _ in range(4):
        pool.ask(ask)
    assert (a.jobs, b.jobs) == (2, 2)
    fifth = pool.ask(ask)
    assert pool.refused == [(fifth, True)]
    pool.end(a)
    pool.ask(ask)
    assert (a.jobs, b.jobs) == (2, 2)


def test_those_who_left_are_forgotten_though_nothing_moves() -> None:
    pool = Pool()
    pool.worker("a")
    pool.ask(ROLLOUT)
    pool.ask(ROLLOUT, "patient")
    for number in range(10_000):
        pool.queue.drop(pool.ask(ROLLOUT, f"client-{number % 50}"))
    (line,) = pool.queue.lines()
    assert sum(map(len, line.levels[1].values())) < 200
    assert len(line.rising) < 200
    assert pool.queue.waiting == 1


def test_what_was_never_asked_for_again_is_forgotten() -> None:
    pool = Pool()
    for number in range(600):
        worker = pool.worker(f"w{number}", model=f"m{number}")
        pool.ask(Facts(model=f"m{number}"))
        pool.end(worker)
    assert len(pool.queue._lines) <= 300
    assert pool.queue.waiting == 0


def test_the_short_way_is_only_for_those_who_need_not_wait() -> None:
    pool = Pool()
    worker = pool.worker("a", slots=2)
    assert pool.queue.at_once(Facts(need=Need.JOB)) is None
    assert pool.queue.at_once(Facts(need=Need.NOTHING)) is None
    for _ in range(2):
        assert pool.queue.at_once(IMAGE) is worker
        pool.running.setdefault(worker, []).append(
            pool.registry.lease(worker, Hold(worker, worker.incarnation, HoldKind.GENERATION))
        )
        pool.queue.taken(worker)
    assert pool.queue.at_once(IMAGE) is None
    waiting = pool.ask(IMAGE)
    assert pool.end(worker) is waiting
    assert pool.queue.at_once(IMAGE) is None
    pool.registry.administer(worker, AdminEvent.DRAIN)
    assert pool.end(worker) is None
    assert pool.queue.at_once(IMAGE) is None
