"""Levels of waiting requests: which line goes first, and what a line remembers."""

from __future__ import annotations

from attrs import evolve

from router.front.priority import Priority
from router.pool.lifecycle import AdminEvent
from router.pool.lines import Waiting
from router.pool.match import Facts
from router.pool.worker import Task
from tests.unit.pool.test_queue import IMAGE, ROLLOUT, Pool

HIGH, NORMAL, LOW = Priority
ANY = Facts()


def ask(pool: Pool, priority: Priority, facts: Facts = ROLLOUT, client: str = "") -> Waiting:
    return pool.ask(evolve(facts, priority=priority), client)


class Clock:
    """A pool whose clock is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pool = Pool()
        self.pool.queue.ageing.clock = lambda: self.now
        self.pool.queue.ageing.seconds = 10.0


def test_of_two_lines_the_higher_level_is_served() -> None:
    pool = Pool()
    a, b = pool.worker("a"), pool.worker("b", "T2V")
    for facts in (IMAGE, Facts(task=Task.VIDEO)):
        ask(pool, NORMAL, facts)
    assert (a.free_slots, b.free_slots) == (0, 0)
    # The first two fit only a, the others both.
    low, normal = ask(pool, LOW, IMAGE), ask(pool, NORMAL, IMAGE)
    high, last = ask(pool, HIGH, ANY), ask(pool, LOW, ANY)
    assert len(pool.queue.lines()) == 2
    served = [pool.end(a) for _ in range(4)]
    assert served == [high, normal, low, last]


def test_if_only_troubled_workers_are_left_the_higher_level_is_served() -> None:
    pool = Pool()
    a, b, c = pool.worker("a"), pool.worker("b"), pool.worker("c", "T2V")
    ask(pool, NORMAL, Facts(task=Task.VIDEO))
    pool.registry.trouble(b, "refused")
    pool.registry.trouble(c, "refused")
    ask(pool, NORMAL, IMAGE)
    assert (a.free_slots, b.free_slots, c.free_slots) == (0, 1, 0)
    low = ask(pool, LOW, IMAGE)
    high = ask(pool, HIGH, ANY)
    assert len(pool.queue.lines()) == 2
    pool.registry.administer(a, AdminEvent.DRAIN)
    assert b.free_slots == 0
    assert pool.grants[-1] is high
    assert low not in pool.grants


def test_a_rebuilt_line_lets_each_request_rise_once() -> None:
    clock = Clock()
    pool = clock.pool
    worker = pool.worker("a")
    ask(pool, HIGH)
    low, normal = ask(pool, LOW), ask(pool, NORMAL)
    for _ in range(500):
        pool.queue.drop(ask(pool, LOW))
    clock.now = 10.0
    high = ask(pool, HIGH)
    assert pool.end(worker) is normal
    assert (low.level, normal.level) == (1, 0)
    assert pool.end(worker) is high


def test_requests_that_were_served_do_not_pile_up() -> None:
    clock = Clock()
    pool = clock.pool
    worker = pool.worker("a")
    ask(pool, LOW)
    for number in range(2000):
        ask(pool, LOW if number % 2 else NORMAL)
        pool.end(worker)
    (line,) = pool.queue._lines.values()
    assert len(line.rising) < 200


def test_what_moves_to_another_line_rises_there_alone() -> None:
    clock = Clock()
    pool = clock.pool
    a = pool.worker("a")
    ask(pool, HIGH, IMAGE)
    image, video = ask(pool, NORMAL, IMAGE), ask(pool, NORMAL, Facts(task=Task.VIDEO))
    stays = ask(pool, LOW, IMAGE)
    assert len(pool.queue.lines()) == 1
    b = pool.worker("b", "T2V")  # which alone can do videos
    assert video in pool.grants
    assert len(pool.queue.lines()) == 1
    more = ask(pool, NORMAL, Facts(task=Task.VIDEO))
    clock.now = 10.0
    high = ask(pool, HIGH, IMAGE)
    assert [pool.end(a) for _ in range(3)] == [image, high, stays]
    assert (video.level, more.level) == (1, 1)
    assert pool.end(b) is more
    assert more.level == 0
    assert pool.queue.waiting == 0


def test_one_that_has_risen_waits_in_one_place() -> None:
    clock = Clock()
    pool = clock.pool
    worker = pool.worker("a")
    ask(pool, HIGH)
    some = [ask(pool, LOW, client=client) for client in "ab"]
    high = ask(pool, HIGH)
    clock.now = 10.0
    assert pool.end(worker) is high
    assert [waiting.level for waiting in some] == [1, 1]
    assert list(pool.queue.all()) == some
    (line,) = pool.queue.lines()
    assert line._left == 2
    assert [pool.end(worker) for _ in some] == some
    assert line.head() is None
    assert line._left == 0
    assert line.levels == {}
