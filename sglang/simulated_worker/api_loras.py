"""LoRA adapters: set, merge, unmerge, list."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import frozen

from .exchange import Exchange
from .fields import Field, check
from .messages import Response, detail, json_response, unprocessable
from .routing import Route
from .scheduler import SchedulerError
from .state import State
from .weights import WeightsError

_SET = (
    Field("lora_nickname", "strs", required=True, nullable=False),
    Field("lora_path", "paths"),
    Field("target", "strs", "all", nullable=False),
    Field("strength", "floats", 1.0, nullable=False),
    Field("merge_mode", "str"),
    Field("lora_alpha", "ints"),
)
_MERGE = (
    Field("target", "str", "all", nullable=False),
    Field("strength", "float", 1.0, nullable=False),
)
_LOAD_SECONDS = 0.3
_SWITCH_SECONDS = 0.1


@frozen
class LorasApi:
    """Failures are 500 with `detail`; what was set acts on every later generation."""

    state: State

    def routes(self) -> list[Route]:
        return [
            Route("POST", "/v1/set_lora", self.set),
            Route("POST", "/v1/merge_lora_weights", self.merge),
            Route("POST", "/v1/unmerge_lora_weights", self.unmerge),
            Route("GET", "/v1/list_loras", self.list),
        ]

    async def set(self, exchange: Exchange) -> Response:
        values = await _values(exchange, _SET)
        nicknames = _many(values["lora_nickname"])
        count = len(nicknames)
        paths = _spread(values["lora_path"], count)
        targets, strengths = _spread(values["target"], count), _spread(values["strength"], count)
        loras = self.state.scheduler.loras
        known = all(
            path is None or loras.loaded.get(name) == path
            for name, path in zip(nicknames, paths, strict=False)
        )

        def act() -> None:
            for name, items in (("lora_path", paths), ("target", targets)):
                if len(items) != count:
                    raise WeightsError(
                        f"Length mismatch: lora_nickname has {count}, {name} has {len(items)}"
                    )
            loras.set(nicknames, paths, targets, strengths, values["merge_mode"])

        shown = ", ".join(f"{s:.2f}" for s in _many(values["strength"]))
        message = (
            f"Successfully set LoRA adapter(s): {', '.join(nicknames)} "
            f"(target: {', '.join(_many(values['target']))}, strength: {shown})"
        )
        seconds = _SWITCH_SECONDS if known else _LOAD_SECONDS
        return await self._change(
            exchange, "set_lora", act, seconds, message, "Failed to set LoRA adapter"
        )

    async def merge(self, exchange: Exchange) -> Response:
        values = await _values(exchange, _MERGE)
        loras = self.state.scheduler.loras
        return await self._change(
            exchange,
            "merge_lora_weights",
            lambda: loras.merge(values["target"], values["strength"], merged=True),
            _SWITCH_SECONDS,
            f"Successfully merged LoRA weights (target: {values['target']}, "
            f"strength: {values['strength']})",
            "Failed to merge LoRA weights",
        )

    async def unmerge(self, exchange: Exchange) -> Response:
        values = await _values(exchange, _MERGE[:1])
        loras = self.state.scheduler.loras
        return await self._change(
            exchange,
            "unmerge_lora_weights",
            lambda: loras.merge(values["target"], 1.0, merged=False),
            _SWITCH_SECONDS,
            f"Successfully unmerged LoRA weights (target: {values['target']})",
            "Failed to unmerge LoRA weights",
        )

    async def list(self, exchange: Exchange) -> Response:
        try:
            told: dict[str, Any] = await self.state.scheduler.control(
                "list_loras",
                self.state.scheduler.loras.as_json,
                0,
                request_id=exchange.entry.request_id,
            )
        except SchedulerError as error:
            raise detail(500, str(error)) from None
        return json_response(told)

    async def _change(
        self,
        exchange: Exchange,
        kind: str,
        act: Callable[[], None],
        seconds: float,
        message: str,
        failure: str,
    ) -> Response:
        fault = self.state.faults.take("fail_next_update", exchange.path)

        def with_fault() -> None:
            if fault is None or fault.text("effect", "none") == "applied":
                act()
            if fault is not None:
                self.state.scheduler.loras.wrapped = True  # a worker wraps before it loads
                raise WeightsError(fault.text("message", "simulated failure"))

        try:
            await self.state.scheduler.control(
                kind,
                with_fault,
                seconds,
                request_id=exchange.entry.request_id,
                facts={"message": message},
            )
        except WeightsError as error:
            status = int(fault.number("status", 500)) if fault else 500
            raise detail(status, f"{failure}: {error}") from None
        except SchedulerError as error:
            raise detail(500, str(error)) from None
        return json_response({"status": "ok", "message": message})


async def _values(exchange: Exchange, fields: tuple[Field, ...]) -> dict[str, Any]:
    """The body's fields. No body at all counts as an empty object."""
    values, errors = check(await exchange.model(optional=True), fields)
    if errors:
        raise unprocessable(errors)
    return values


def _many(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _spread(value: Any, count: int) -> list[Any]:
    """One value for each adapter."""
    return value if isinstance(value, list) else [value] * count
