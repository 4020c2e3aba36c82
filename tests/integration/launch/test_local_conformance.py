"""The local backend does what every backend must."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from attrs import define, field

from router.launch import processes
from router.launch.base import TOKEN_VARIABLE, Backend, Order, WorkerPlan
from router.launch.local import LocalBackend
from tests.integration.launch.conformance import CASES, Case, order_of, plan_of
from tests.patience import fail_after

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX process groups")

STAYS = "print('hello', flush=True); import time; time.sleep(60)"
STUBBORN = (
    "import os, signal, time\n"
    "for number in (signal.SIGINT, signal.SIGTERM): signal.signal(number, signal.SIG_IGN)\n"
    "os.fork()\n"
    "time.sleep(60)\n"
)


@define
class LocalSite:
    folder: Path
    backend: Backend = field(factory=LocalBackend)

    def stays(self) -> WorkerPlan:
        return python(STAYS)

    def exits(self, status: int) -> WorkerPlan:
        return python(f"print('hello\\nbye'); raise SystemExit({status})")

    def stubborn(self) -> WorkerPlan:
        return python(STUBBORN)

    def order(self, plan: WorkerPlan) -> Order:
        return order_of(plan, log=self.folder / "worker.log")

    def another(self) -> Backend:
        return LocalBackend()

    async def alive(self, token: str) -> int:
        return len(processes.marked(TOKEN_VARIABLE, [token])[token])


def python(code: str) -> WorkerPlan:
    return plan_of(sys.executable, "-I", "-S", "-c", code)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_local(case: Case, tmp_path: Path) -> None:
    run(lambda: case(LocalSite(tmp_path)))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_where_the_system_tells_of_no_exit(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.launch.local._pidfd", lambda _: None)
    monkeypatch.setattr("router.launch.local._POLL", 0.01)
    run(lambda: case(LocalSite(tmp_path)))


def run(main: Callable[[], object]) -> None:
    async def bounded() -> None:
        with fail_after(20):
            await main()  # type: ignore[misc]

    trio.run(bounded, strict_exception_groups=True)
