"""`/vertex_generate`: several prompts at once, errors told per item under status 200."""

from __future__ import annotations

import base64
from functools import partial
from typing import Any

from attrs import frozen

from .config import output_type
from .exchange import Exchange
from .fields import Field, as_validation_text, check
from .generation import Plan, plan, submit
from .messages import Response, detail, json_response, unprocessable
from .movies import render_movie
from .routing import Route
from .scheduler import Work
from .state import State

_FIELDS = (
    Field("instances", "list", required=True, nullable=False),
    Field("parameters", "object"),
)
_PARAMETERS = tuple(Field(name, "int") for name in ("num_frames", "fps", "width", "height"))
_FPS = 24


@frozen
class VertexApi:
    """All instances are checked before any is queued."""

    state: State

    def routes(self) -> list[Route]:
        return [Route("POST", "/vertex_generate", self.generate)]

    async def generate(self, exchange: Exchange) -> Response:
        body = await exchange.model()
        values, errors = check(body, _FIELDS, shown=body)
        if errors:
            raise unprocessable(errors)
        output = output_type(self.state.config.task)
        parameters, errors = check(values["parameters"] or {}, _PARAMETERS, "parameters")
        if errors:
            raise detail(400, as_validation_text("parameters", errors, values["parameters"]))
        plans = [self._plan(output, parameters, item) for item in values["instances"]]
        works = [submit(self.state, output.lower(), made, exchange) for made in plans]
        return json_response(
            {
                "predictions": [
                    await self._prediction(made, work)
                    for made, work in zip(plans, works, strict=True)
                ]
            }
        )

    def _plan(self, output: str, parameters: dict[str, Any], item: Any) -> Plan:
        fields = item if isinstance(item, dict) else {}
        prompt = fields.get("prompt") or fields.get("text")
        image = fields.get("image") or fields.get("image_url") or ""
        frames = (parameters.get("num_frames") or 81) if output == "VIDEO" else 1
        if not isinstance(prompt, str):
            kind = type(prompt)
            raise detail(400, f"`prompt` must be a string, but got {kind}")
        known = {field.name: parameters[field.name] for field in _PARAMETERS}
        values = {**known, "prompt": str(prompt or ""), "size": None, "n": 1}
        values["num_outputs_per_prompt"] = 1
        return plan(self.state, values, output, frames=frames, inputs=str(image), checked=False)

    async def _prediction(self, made: Plan, work: Work) -> dict[str, Any]:
        await work.finished.wait()
        if work.error is not None:
            return {"error": str(work.error)}
        recipe = made.recipes(work)[0]
        if made.shape.output == "VIDEO":
            make = partial(render_movie, recipe, made.shape.frames, _FPS)
            data = await self.state.renderer.file(made.id, make)
        else:
            data = await self.state.renderer.picture(recipe)
        return {
            "output": base64.b64encode(data).decode("ascii"),
            "error": None,
            "output_file_paths": None,
            "peak_memory_mb": 0.0,
            "usage": None,
        }
