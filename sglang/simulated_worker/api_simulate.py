"""`/simulate`: faults and the log. Never delayed, refused or broken by a fault."""

from __future__ import annotations

from typing import Any

from attrs import frozen

from .exchange import Exchange
from .faults import CATALOGUE, FaultError
from .messages import NotJson, Response, detail, from_json, json_response
from .routing import Route
from .state import State


@frozen
class SimulateApi:
    """The worker hears of a fault from `Faults.changed`."""

    state: State

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/simulate", self.show),
            Route("POST", "/simulate", self.add),
            Route("GET", "/simulate/log", self.log),
            Route("DELETE", "/simulate/log", self.clear_log),
        ]

    async def show(self, _: Exchange) -> Response:
        scheduler = self.state.scheduler
        return json_response(
            {
                "faults": CATALOGUE,
                "active": self.state.faults.as_json(),
                "state": {
                    "weights": scheduler.weights.identity,
                    "model_path": scheduler.weights.path,
                    "lora": scheduler.loras.identity,
                    "asleep": scheduler.asleep,
                    "dead": scheduler.failure is not None,
                    "warm": self.state.warm,
                    "running": len(scheduler.running),
                    "queued": len(scheduler.queue),
                },
            }
        )

    async def add(self, exchange: Exchange) -> Response:
        try:
            body: Any = from_json(await exchange.body())
        except NotJson as error:
            raise detail(400, f"not JSON: {error}") from None
        if not isinstance(body, dict) or not isinstance(body.get("fault"), str):
            raise detail(400, 'expected {"fault": "...", ...}; GET /simulate lists the faults')
        settings = {key: value for key, value in body.items() if key != "fault"}
        try:
            self.state.faults.add(body["fault"], **settings)
        except FaultError as error:
            raise detail(400, str(error)) from None
        return json_response({"status": "ok", "active": self.state.faults.as_json()})

    async def log(self, _: Exchange) -> Response:
        return json_response(self.state.record.as_json())

    async def clear_log(self, _: Exchange) -> Response:
        self.state.record.clear()
        return json_response({"status": "ok"})
