"""Ejection step by step, in virtual time."""

from __future__ import annotations

from router.pool.ejection import EjectionLimits
from router.pool.lifecycle import Probe, reasons
from router.pool.match import Candidates, Facts
from router.pool.worker import Capabilities, HoldKind, Origin, Task
from tests.property.test_ejection import Pool


def ejected(count: int = 2, **limits: float) -> Pool:
    """A pool whose first worker is on trial."""
    pool = Pool(count, EjectionLimits(**limits))  # type: ignore[arg-type]
    pool.ask(pool.workers[0], fails=True)
    assert reasons(pool.workers[0]) == []
    pool.ask(pool.workers[0], fails=True)
    assert reasons(pool.workers[0]) == ["on_trial"]
    return pool


def test_the_pause_doubles_with_each_failed_trial_up_to_the_longest() -> None:
    pool = ejected(pause=1.0, longest=5.0)
    broken, sound = pool.workers
    for pause in (1.0, 2.0, 4.0, 5.0, 5.0):
        for _ in range(60):  # what it costs is paid for
            pool.ask(sound, fails=False)
        assert broken.trial is not None
        assert broken.trial.pause == pause
        pool.wait(pause - 0.01)
        assert not broken.trial.due
        pool.wait(0.02)
        assert broken.trial.due
        hold = pool.begin(broken)
        pool.wait(100)
        assert not broken.trial.due  # one at a time
        pool.end(hold, fails=True)


def test_a_trial_that_is_not_paid_for_waits_longer() -> None:
    pool = ejected()
    broken, sound = pool.workers
    assert broken.trial is not None
    for _ in range(39):
        pool.ask(sound, fails=False)
    pool.wait(1.5)
    assert not broken.trial.due
    pool.ask(sound, fails=False)
    assert broken.trial.due
    pool = ejected()
    pool.wait(19.9)
    assert pool.workers[0].trial is not None
    assert not pool.workers[0].trial.due
    pool.wait(0.2)
    assert pool.workers[0].trial.due


def test_a_trial_whose_client_leaves_comes_again_after_the_same_pause() -> None:
    pool = ejected()
    broken = pool.workers[0]
    pool.wait(20)
    hold = pool.begin(broken)
    assert broken.trial is not None
    pool.wait(100)
    pool.end(hold, fails=None)
    assert (broken.trial.pause, broken.trial.failures, broken.trial.due) == (1.0, 2, False)
    pool.wait(20)
    assert broken.trial.due


def test_a_session_is_no_trial() -> None:
    pool = ejected()
    broken = pool.workers[0]
    pool.wait(20)
    hold = pool.begin(broken)
    pool.end(hold, fails=None)
    pool.wait(20)
    session = pool.begin(broken)
    session.kind = HoldKind.SESSION
    assert broken.trial is not None
    broken.trial.due, broken.trial.hold = True, None
    pool.registry.ejection.granted(session)
    assert broken.trial.due


def test_who_is_ejected_again_soon_waits_longer() -> None:
    pool = ejected()
    broken = pool.workers[0]
    for wait, pause in ((20, 2.0), (20, 4.0), (200, 1.0)):
        pool.ask(broken, fails=False)
        assert broken.trial is None
        pool.wait(wait)
        pool.ask(broken, fails=True)
        pool.ask(broken, fails=True)
        pool.ask(broken, fails=True)
        assert broken.trial is not None
        assert broken.trial.pause == pause


def test_who_is_ejected_is_freed_once_the_others_fail_as_well() -> None:
    pool = ejected(3)
    first = pool.workers[0]
    for _ in range(4):
        pool.ask(pool.workers[1], fails=True)
        pool.ask(pool.workers[2], fails=True)
    assert not any(worker.trial for worker in pool.workers)
    assert pool.ejections == 1
    assert reasons(first) == []


def test_old_outcomes_count_no_more() -> None:
    pool = Pool(2)
    pool.ask(pool.workers[0], fails=True)
    pool.wait(301)
    pool.ask(pool.workers[0], fails=True)
    assert pool.ejections == 0


def test_only_those_that_fit_the_same_requests_are_compared() -> None:
    """A model that is served by one worker alone, beside two of another one."""
    pool = Pool(2)
    alone = pool.registry.add("http://alone", Origin.STATIC, concurrency=100)
    pool.registry.probed(alone, Probe.OK)
    pool.registry.learned(alone, Capabilities(models=("x",), task_types=("T2I",)))
    wants = Facts(model="x", task=Task.IMAGE).wants
    for _ in range(10):
        pool.ask(pool.workers[0], fails=False)
        meant = Candidates(pool.registry).fitting(wants)
        pool.registry.ejection.failed(pool.begin(alone), meant, pool.now, "why")
    assert meant == (alone,)
    assert alone.trial is None


def test_a_pause_that_a_worker_asks_for_is_bounded() -> None:
    pool = Pool(2)
    worker = pool.workers[0]
    pool.registry.ejection.hold_off(worker, 3600, pool.now)
    pool.registry.ejection.hold_off(worker, 1, pool.now)  # does not shorten it
    assert reasons(worker) == ["backpressure"]
    pool.wait(59.9)
    assert worker.paused
    pool.wait(0.2)
    assert not worker.paused
    pool.registry.ejection.hold_off(worker, 0, pool.now)
    assert not worker.paused
