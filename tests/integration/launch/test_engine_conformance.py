"""The protocol fits an engine that is slow and far away: a fake one passes the suite."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from attrs import define, field

from router.launch.base import Backend, Order, WorkerPlan
from tests.integration.launch.conformance import CASES, Case, order_of, plan_of
from tests.integration.launch.engine import Engine, EngineBackend


@define
class EngineSite:
    engine: Engine
    backend: Backend = field()

    @backend.default
    def _backend(self) -> Backend:
        return EngineBackend(self.engine)

    def stays(self) -> WorkerPlan:
        return plan_of("stay")

    def exits(self, status: int) -> WorkerPlan:
        return plan_of("exit", str(status))

    def stubborn(self) -> WorkerPlan:
        return plan_of("stubborn")

    def order(self, plan: WorkerPlan) -> Order:
        return order_of(plan)

    def another(self) -> Backend:
        return EngineBackend(self.engine)

    async def alive(self, token: str) -> int:
        await trio.sleep(3 * self.engine.pace)
        job = self.engine.jobs.get(token)
        return job.processes if job else 0


@pytest.mark.parametrize("latency", [0.0, 2.0])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_engine(case: Case, latency: float) -> None:
    async def main() -> None:
        engine = Engine(latency=latency)
        async with trio.open_nursery() as nursery:
            await nursery.start(engine.run)
            with trio.fail_after(1000):
                await case(EngineSite(engine))
            nursery.cancel_scope.cancel()

    clock = trio.testing.MockClock(autojump_threshold=0)
    trio.run(main, clock=clock, strict_exception_groups=True)
