"""What becomes of a claim: met, failed or dropped, and each exactly once. In virtual time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio

from router.control.calls import Claim, Pipe
from router.control.client import Call
from router.control.plan import Stage
from router.pool.lifecycle import AdminEvent
from router.pool.worker import HoldKind, Worker
from tests.unit.control.naps import BODY, BROKEN, HANGS, Nap, answer, play, settle

CALL = Call("/update_weights_from_disk", 1800.0, BODY)


class Log:
    """What was recorded, and makes claims."""

    def __init__(self, nap: Nap) -> None:
        self.nap = nap
        self.rows: list[tuple[int, str | None, bool]] = []

    async def record(self, claim: Claim) -> None:
        row = claim.row
        assert row is not None
        await trio.sleep(0.001)  # it is written
        self.rows.append((row.status, row.body.get("code"), row.sent))

    def claim(self, worker: Worker, call: Call | None = CALL, within: float = 100.0) -> Claim:
        return Claim(worker, self.record, within, call, worker.incarnation)


Body = Callable[[Nap, Log, Worker], Awaitable[None]]


def run(body: Body) -> None:
    """With a worker that no request is given to."""

    async def main(nap: Nap) -> None:
        worker = nap.add("a")
        nap.registry.administer(worker, AdminEvent.DRAIN)
        nap.engine(worker).takes = 5.0
        await body(nap, Log(nap), worker)

    play(main)


def test_it_is_drained_called_and_recorded() -> None:
    async def body(nap: Nap, log: Log, worker: Worker) -> None:
        lease = nap.busy(worker, HoldKind.JOB)
        claim = log.claim(worker)
        with nap.memory.agents.having([claim]):
            await trio.sleep(50)
            assert claim.stage is Stage.DRAINING
            lease.release()
            await claim.over.wait()
            assert nap.engine(worker).times == [50.0]
        assert log.rows == [(200, None, True)]

    run(body)


def test_its_patience_has_one_end_whatever_happens_meanwhile() -> None:
    async def body(nap: Nap, log: Log, worker: Worker) -> None:
        nap.busy(worker, HoldKind.JOB)
        claim = Claim(worker, log.record, 100.0, CALL)  # whichever process answers
        with nap.memory.agents.having([claim]):
            await trio.sleep(60)
            nap.replace(worker)
            nap.busy(worker, HoldKind.JOB)
            await claim.over.wait()
            assert trio.current_time() == pytest.approx(100, abs=1)
        assert log.rows == [(504, "drain_timeout", False)]
        assert nap.engine(worker).asked == []

    run(body)


def test_a_suspect_is_called_once_it_is_certain() -> None:
    async def body(nap: Nap, log: Log, worker: Worker) -> None:
        nap.registry.suspect(worker, "it refused a connection")
        claim = log.claim(worker)
        with nap.memory.agents.having([claim]):
            await trio.sleep(20)
            assert nap.engine(worker).asked == []
            nap.registry.absolve(worker)
            await claim.over.wait()
        assert nap.engine(worker).times == [20.0]
        assert log.rows == [(200, None, True)]

    run(body)


@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("how", ["ill", "quarantined", "removed", "replaced"])
def test_a_worker_that_leaves(how: str, called: bool) -> None:
    async def body(nap: Nap, log: Log, worker: Worker) -> None:
        nap.engine(worker).script.append(HANGS)
        if not called:
            nap.busy(worker, HoldKind.JOB)
        claim = log.claim(worker)
        with nap.memory.agents.having([claim]):
            await trio.sleep(10)
            match how:
                case "ill":
                    nap.fall_ill(worker)
                case "quarantined":
                    nap.registry.administer(worker, AdminEvent.QUARANTINE)
                case "removed":
                    nap.registry.remove(worker)
                case "replaced":
                    nap.replace(worker)
            await settle()
            assert claim.over.is_set()
        assert log.rows == [(502, "left_change", called)]
        assert len(nap.engine(worker).asked) == called

    run(body)


def test_one_that_was_removed_before() -> None:
    async def body(nap: Nap, log: Log, worker: Worker) -> None:
        claim = log.claim(worker)
        nap.registry.remove(worker)
        await settle()
        with nap.memory.agents.having([claim]):
            await claim.over.wait()
        assert log.rows == [(502, "left_change", False)]

    run(body)


def test_one_that_is_dropped_is_broken_off_and_not_recorded() -> None:
    async def body(nap: Nap, log: Log, worker: Worker) -> None:
        nap.engine(worker).script.append(HANGS)
        claim = log.claim(worker)
        with nap.memory.agents.having([claim]):
            await trio.sleep(10)
            assert nap.engine(worker).asked
        assert claim.over.is_set()
        await settle()
        assert log.rows == []
        # The agent is free for the next one.
        other = log.claim(worker)
        with nap.memory.agents.having([other]):
            await other.over.wait()
        assert log.rows == [(200, None, True)]

    run(body)


def test_a_held_worker_gets_one_call_after_the_other() -> None:
    async def body(nap: Nap, log: Log, worker: Worker) -> None:
        agents = nap.memory.agents
        nap.engine(worker).script.extend([BROKEN, answer(400, success=False)])
        claim = log.claim(worker, None)
        with agents.having([claim]):
            await claim.idle.wait()
            await trio.sleep(1000)  # longer than it might take to be idle
            assert claim.stage is Stage.HELD
            for _ in range(3):
                claim.send(CALL)
                agents.look([worker])
                await claim.over.wait()
                claim.send(None)
            nap.fall_ill(worker)
            await settle()
        assert log.rows == [
            (502, "worker_failed", True),
            (400, None, True),
            (200, None, True),
            (502, "left_change", False),
        ]

    run(body)


def test_a_body_that_nobody_takes_any_more_holds_nobody_up() -> None:
    async def body(nap: Nap, log: Log, worker: Worker) -> None:
        pipe = Pipe()
        claim = log.claim(worker, Call(CALL.path, 1800.0, pipe))
        nap.busy(worker, HoldKind.JOB)
        with nap.memory.agents.having([claim]):
            nap.fall_ill(worker)
            await claim.over.wait()
        for _ in range(100):
            await pipe.put(b"more")
        assert pipe.over

    run(body)
