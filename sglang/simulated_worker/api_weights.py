"""Weights: updates from disk, checksums, sleep and wake."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import frozen

from .exchange import Exchange
from .faults import Fault
from .messages import Response, json_response, server_error, unsuccessful
from .routing import Route
from .scheduler import Scheduler, SchedulerError
from .state import State
from .weights import WeightsError, digest

_MOVE_SECONDS = 0.2
_CHECKSUM_SECONDS = 0.1
ASLEEP_UPDATE = (
    "Cannot update weights while the server is sleeping. Call resume_memory_occupation first."
)


@frozen
class WeightsApi:
    """Every call waits in the scheduler's queue, behind what was there before it."""

    state: State

    def routes(self) -> list[Route]:
        return [
            Route("POST", "/update_weights_from_disk", self.from_disk),
            Route("POST", "/get_weights_checksum", self.checksum),
            Route("POST", "/release_memory_occupation", self.release),
            Route("POST", "/resume_memory_occupation", self.resume),
        ]

    async def from_disk(self, exchange: Exchange) -> Response:
        body = await json_object(exchange)
        path = body.get("model_path")
        if not path:
            raise unsuccessful(400, "model_path is required")
        scheduler, targets = self.state.scheduler, names_in(body, "target_modules")

        facts: dict[str, Any] = {"model_path": str(path), "target_modules": targets}

        def act() -> str:
            refuse_asleep(scheduler)
            skip = wrapped(scheduler)
            facts["skipped"] = sorted(skip)
            return scheduler.weights.from_disk(str(path), targets, skip)

        return await change(
            self.state,
            exchange,
            "update_weights_from_disk",
            act,
            self.state.config.load_seconds,
            facts,
        )

    async def checksum(self, exchange: Exchange) -> Response:
        body = await json_object(exchange)
        names = names_in(body, "module_names")
        scheduler = self.state.scheduler

        def act() -> dict[str, str]:
            modules = scheduler.weights.modules
            return {
                name: checksum(scheduler, name) for name in (modules if names is None else names)
            }

        try:
            sums = await scheduler.control(
                "get_weights_checksum", act, _CHECKSUM_SECONDS, request_id=exchange.entry.request_id
            )
        except SchedulerError as error:
            return json_response({"error": str(error)}, 500)
        return json_response(sums)

    async def release(self, exchange: Exchange) -> Response:
        def act() -> dict[str, Any]:
            scheduler = self.state.scheduler
            message = "released GPU memory (moved active modules to CPU)"
            if scheduler.asleep:
                message = "already sleeping"
            scheduler.asleep = True
            return {"success": True, "sleeping": True, "message": message}

        return await self._memory(exchange, "release_memory_occupation", act)

    async def resume(self, exchange: Exchange) -> Response:
        def act() -> dict[str, Any]:
            scheduler = self.state.scheduler
            message = "resumed GPU memory (restored modules to original devices)"
            if not scheduler.asleep:
                message = "already awake"
            scheduler.asleep = False
            return {"success": True, "sleeping": False, "message": message}

        return await self._memory(exchange, "resume_memory_occupation", act)

    async def _memory(
        self, exchange: Exchange, kind: str, act: Callable[[], dict[str, Any]]
    ) -> Response:
        await exchange.drop_body()
        if fault := self.state.faults.take("fail_next_update", exchange.path):
            raise refused(fault)
        try:
            told = await self.state.scheduler.control(
                kind, act, _MOVE_SECONDS, request_id=exchange.entry.request_id
            )
        except SchedulerError as error:
            raise unsuccessful(500, str(error)) from None
        return json_response(told)


async def json_object(exchange: Exchange) -> dict[str, Any]:
    """The body as an object; anything else is the plain-text 500."""
    body = await exchange.json()
    if not isinstance(body, dict):
        raise server_error()
    return body


def names_in(body: dict[str, Any], key: str) -> list[str] | None:
    """A list of names, or None. Raises a 500 `Refusal` for anything else."""
    names = body.get(key)
    if names is not None and not (
        isinstance(names, list) and all(isinstance(name, str) for name in names)
    ):
        raise unsuccessful(500, f"{key}: expected a list of names")
    return names


def wrapped(scheduler: Scheduler) -> frozenset[str]:
    """The modules some of whose layers are wrapped, which updates then skip."""
    return frozenset({"transformer"} if scheduler.loras.wrapped else ())


def refuse_asleep(scheduler: Scheduler) -> None:
    if scheduler.asleep:
        raise SchedulerError(ASLEEP_UPDATE)


def checksum(scheduler: Scheduler, name: str) -> str:
    """64 hexadecimal digits; they follow the weights, the wrapping and what is merged."""
    module = scheduler.weights.modules.get(name)
    if module is None:
        return "not_found"
    parts = [name, module.identity]
    if name == "transformer" and scheduler.loras.wrapped:
        worn = "with adapters" if scheduler.loras.active else "bare"
        parts += ["wrapped", worn, scheduler.loras.identity]
    return digest("checksum a", *parts) + digest("checksum b", *parts)


async def change(
    state: State,
    exchange: Exchange,
    kind: str,
    act: Callable[[], str],
    seconds: float,
    facts: dict[str, Any],
) -> Response:
    """Runs a weight change in its turn and answers as the weight endpoints do.

    `facts` go into the log; `act` may add to them.
    """
    fault = state.faults.take("fail_next_update", exchange.path)

    def with_fault() -> str:
        if fault is None:
            return act()
        effect = fault.text("effect", "none")
        if effect == "applied":
            act()
        elif effect == "partial":
            state.scheduler.weights.spoil(repr(sorted(facts.items())))
        elif effect == "rollback":
            state.scheduler.weights.roll_back()
        raise WeightsError(fault.text("message", "simulated failure"))

    try:
        message = await state.scheduler.control(
            kind, with_fault, seconds, request_id=exchange.entry.request_id, facts=facts
        )
    except WeightsError as error:
        status = int(fault.number("status", 400)) if fault else 400
        raise unsuccessful(status, str(error)) from None
    except SchedulerError as error:
        raise unsuccessful(500, str(error)) from None
    return json_response({"success": True, "message": message})


def refused(fault: Fault) -> Exception:
    """The answer of a control call that a fault refuses before it began."""
    return unsuccessful(
        int(fault.number("status", 400)), fault.text("message", "simulated failure")
    )
