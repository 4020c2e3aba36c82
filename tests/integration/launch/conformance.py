"""What every backend must do: one suite, run against each (router/launch/base.py).

A backend's test module makes a `Site` and calls `check` with each of `CASES`.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from typing import Protocol

import trio
from attrs import evolve

from router.launch.base import Backend, Handle, Order, Run, RunState, WorkerPlan, WorkerPorts

PATIENCE = (0.3, 0.3)


class Site(Protocol):
    """A backend, and workers to run on it. Times are the site's own: virtual ones may be long."""

    backend: Backend

    def stays(self) -> WorkerPlan:
        """A worker that runs until it is ended, by the first polite signal."""

    def exits(self, status: int) -> WorkerPlan:
        """One that exits by itself, soon."""

    def stubborn(self) -> WorkerPlan:
        """One that does not end by any polite signal, and has a child like that."""

    def order(self, plan: WorkerPlan) -> Order:
        """An order with a token of its own."""

    def another(self) -> Backend:
        """The backend as another router makes it, which has never seen this one."""

    async def alive(self, token: str) -> int:
        """How many processes of a launch live, wherever they are."""


Case = Callable[[Site], Awaitable[None]]


async def it_runs_until_it_is_ended(site: Site) -> None:
    order = site.order(site.stays())
    handle = await site.backend.launch(order)
    assert handle.token == order.token
    run = await running(site.backend, handle)
    assert run.process
    await has(site, order, 1)
    await site.backend.end(handle, patience=PATIENCE)
    assert await site.alive(order.token) == 0
    assert (await site.backend.watch(handle, run)).state is RunState.ENDED


async def an_exit_is_told_with_its_status(site: Site) -> None:
    for status in (0, 3):
        handle = await site.backend.launch(site.order(site.exits(status)))
        run = await over(site.backend, handle)
        assert (run.state, run.status) == (RunState.ENDED, status)
        assert run.reason == f"exited with status {status}"
        await site.backend.end(handle, patience=())


async def the_stubborn_one_is_ended_with_its_children(site: Site) -> None:
    order = site.order(site.stubborn())
    handle = await site.backend.launch(order)
    await running(site.backend, handle)
    await has(site, order, 2)
    await site.backend.end(handle, patience=PATIENCE)
    assert await site.alive(order.token) == 0


async def ending_may_be_repeated_and_may_be_of_nothing(site: Site) -> None:
    handle = await site.backend.launch(site.order(site.stays()))
    for _ in range(2):
        await site.backend.end(handle, patience=PATIENCE)
    await site.backend.end(Handle(secrets.token_hex(16)), patience=PATIENCE)


async def the_same_token_is_one_launch(site: Site) -> None:
    order = site.order(site.stays())
    first = await site.backend.launch(order)
    assert await site.backend.launch(order) == first
    await has(site, order, 1)
    await site.backend.end(first, patience=PATIENCE)


async def two_launches_are_two_processes(site: Site) -> None:
    plan = site.stays()
    proofs = []
    for _ in range(2):
        handle = await site.backend.launch(site.order(plan))
        proofs.append((await running(site.backend, handle)).process)
        await site.backend.end(handle, patience=PATIENCE)
    assert proofs[0] != proofs[1]


async def another_router_finds_watches_and_ends_it(site: Site) -> None:
    order = site.order(site.stays())
    handle = await site.backend.launch(order)
    seen = await running(site.backend, handle)
    other = site.another()
    # As it is read from a record: equal, and not the same object.
    note = evolve(handle)
    assert await other.find([note, Handle("0" * 32)]) == {order.token: handle}
    run = await running(other, note)
    assert run.process == seen.process
    await other.end(note, patience=PATIENCE)
    assert await site.alive(order.token) == 0
    assert await other.find([note]) == {}
    assert (await other.watch(note, run)).state is RunState.ENDED
    await site.backend.end(handle, patience=())


async def a_launch_that_was_never_noted_is_found_by_its_token(site: Site) -> None:
    order = site.order(site.stays())
    handle = await site.backend.launch(order)
    other = site.another()
    found = await other.find([Handle(order.token, log=order.log)])
    assert found[order.token].ident == handle.ident
    await other.end(Handle(order.token, log=order.log), patience=())
    assert await site.alive(order.token) == 0
    await site.backend.end(handle, patience=())


async def what_has_ended_is_not_found(site: Site) -> None:
    handle = await site.backend.launch(site.order(site.exits(0)))
    await over(site.backend, handle)
    assert await site.another().find([handle, Handle(handle.token, log=handle.log)]) == {}
    await site.backend.end(handle, patience=())


async def a_cancelled_launch_leaves_nothing_that_cannot_be_ended(site: Site) -> None:
    for seconds in (0.0, 0.001, 0.01, 0.1, 1.0):
        order = site.order(site.stays())
        with trio.move_on_after(seconds):
            await site.backend.launch(order)
        await site.backend.end(Handle(order.token, log=order.log), patience=())
        assert await site.alive(order.token) == 0


async def a_cancelled_end_uses_force(site: Site) -> None:
    order = site.order(site.stubborn())
    handle = await site.backend.launch(order)
    await running(site.backend, handle)
    await has(site, order, 2)
    with trio.move_on_after(0.1):
        await site.backend.end(handle, patience=(600, 600))
    assert await site.alive(order.token) == 0


async def the_end_of_its_output_can_be_read(site: Site) -> None:
    handle = await site.backend.launch(site.order(site.exits(3)))
    await over(site.backend, handle)
    assert (await site.backend.tail(handle, 1)) == ["bye"]
    assert (await site.backend.tail(handle, 2)) == ["hello", "bye"]
    await site.backend.end(handle, patience=())


CASES: tuple[Case, ...] = (
    it_runs_until_it_is_ended,
    an_exit_is_told_with_its_status,
    the_stubborn_one_is_ended_with_its_children,
    ending_may_be_repeated_and_may_be_of_nothing,
    the_same_token_is_one_launch,
    two_launches_are_two_processes,
    another_router_finds_watches_and_ends_it,
    a_launch_that_was_never_noted_is_found_by_its_token,
    what_has_ended_is_not_found,
    a_cancelled_launch_leaves_nothing_that_cannot_be_ended,
    a_cancelled_end_uses_force,
    the_end_of_its_output_can_be_read,
)


async def has(site: Site, order: Order, count: int) -> None:
    """Wait until a launch has so many processes: one that has just begun shows no token yet."""
    while (found := await site.alive(order.token)) < count:
        await trio.sleep(0.01)
    assert found == count


async def running(backend: Backend, handle: Handle) -> Run:
    """Wait until it runs."""
    run: Run | None = None
    while run is None or run.state is RunState.PENDING:
        run = await backend.watch(handle, run)
    assert run.state is RunState.RUNNING
    return run


async def over(backend: Backend, handle: Handle) -> Run:
    """Wait until it has ended."""
    run: Run | None = None
    while run is None or run.state in (RunState.PENDING, RunState.RUNNING):
        run = await backend.watch(handle, run)
    return run


def plan_of(*command: str, name: str = "worker-0") -> WorkerPlan:
    """A plan of which a backend needs the command only."""
    url, ports = "http://127.0.0.1:1", WorkerPorts(1, 3, 4)
    return WorkerPlan("worker", 0, name, command, {}, url, ports)


def order_of(plan: WorkerPlan, **more: object) -> Order:
    """An order with a token of its own."""
    return Order(plan, secrets.token_hex(16), **{"log": None, **more})  # type: ignore[arg-type]
