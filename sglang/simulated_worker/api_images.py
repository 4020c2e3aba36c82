"""Images: generations (JSON), edits (multipart), and their files."""

from __future__ import annotations

import base64
from typing import Any

from attrs import frozen

from .content import file_response
from .exchange import Exchange
from .fields import Field, check
from .generation import Plan, plan, submit
from .messages import Response, detail, json_response, server_error, unprocessable, wall_seconds
from .multipart import Form, read_form
from .routing import Route
from .state import Images, State

_SHARED = (
    Field("task_type", "str"),
    Field("enhance_prompt", "bool", False, nullable=False),
    Field("model", "str"),
    Field("n", "int", 1),
    Field("quality", "str", "auto"),
    Field("background", "str", "auto"),
    Field("output_format", "str"),
    Field("user", "str"),
    Field("num_inference_steps", "int"),
    Field("guidance_scale", "float"),
    Field("true_cfg_scale", "float"),
    Field("generator_device", "str", "cuda"),
    Field("negative_prompt", "str"),
    Field("output_quality", "str", "default"),
    Field("output_compression", "int"),
    Field("enable_teacache", "bool", False),
    Field("enable_upscaling", "bool", False),
)
GENERATIONS = (
    Field("prompt", "str", required=True, nullable=False),
    *_SHARED,
    Field("response_format", "str", "url"),
    Field("size", "str", "1024x1024"),
    Field("style", "str", "vivid"),
    Field("width", "int"),
    Field("height", "int"),
    Field("seed", "ints"),
    Field("max_sequence_length", "int"),
    Field("flow_shift", "float"),
    Field("diffusers_kwargs", "object"),
)
EDITS = (
    Field("prompt", "str", required=True, nullable=False),
    *_SHARED,
    Field("response_format", "str"),
    Field("size", "str"),
    Field("seed", "int"),
)


@frozen
class ImagesApi:
    """A picture is made when it is asked for: an answer of the `url` form costs no drawing."""

    state: State

    def routes(self) -> list[Route]:
        return [
            Route("POST", "/v1/images/generations", self.generations),
            Route("POST", "/v1/images/edits", self.edits),
            Route("GET", "/v1/images/{image_id}/content", self.content),
        ]

    async def generations(self, exchange: Exchange) -> Response:
        body = await exchange.model()
        values, errors = check(body, GENERATIONS, shown=body)
        if errors:
            raise unprocessable(errors)
        form = response_format(values, "url")
        return await self._generate(exchange, plan(self.state, values, "IMAGE"), form)

    async def edits(self, exchange: Exchange) -> Response:
        form = await read_form(exchange)
        values, errors = check(form.fields, EDITS)
        if errors:
            raise unprocessable(errors)
        wanted = response_format(values, "b64_json")
        inputs = edit_inputs(form)
        if not inputs:
            raise detail(422, "Field 'image' or 'url' is required")
        made = plan(self.state, values, "IMAGE", inputs=inputs)
        return await self._generate(exchange, made, wanted)

    async def content(self, exchange: Exchange) -> Response:
        id, variant = exchange.params["image_id"], exchange.query.get("variant")
        images = self.state.images.get(id)
        if images is None:
            raise detail(404, "Image not found")
        index = int(variant) if (variant or "0").isdecimal() and variant else 0
        known = variant is None or variant.isdecimal()
        if not known or index >= len(images.recipes):
            raise detail(404, f"Image variant {variant} not found")
        data = await self.state.renderer.picture(images.recipes[index])
        name = file_names(id, len(images.recipes), ".png")[index]
        return file_response(exchange, data, "image/png", name, images.created_at)

    async def _generate(self, exchange: Exchange, made: Plan, form: str) -> Response:
        work = submit(self.state, "image", made, exchange)
        await work.finished.wait()
        if work.error is not None:
            raise server_error()
        recipes = made.recipes(work)
        self.state.remember(made.id, Images(recipes))
        names = file_names(made.id, len(recipes), ".png")
        data: list[dict[str, Any]] = []
        for index, recipe in enumerate(recipes):
            b64 = url = None
            if form == "b64_json":
                picture = await self.state.renderer.picture(recipe)
                b64 = base64.b64encode(picture).decode("ascii")
            else:
                url = f"/v1/images/{made.id}/content"
                url += f"?variant={index}" if len(recipes) > 1 else ""
            data.append(
                {
                    "b64_json": b64,
                    "url": url,
                    "revised_prompt": made.prompt,
                    "file_path": f"{self.state.output_path}/{names[index]}",
                    "resize": None,
                }
            )
        return json_response(
            {
                "id": made.id,
                "created": wall_seconds(),
                "data": data,
                "peak_memory_mb": None,
                "inference_time_s": work.entry.seconds,
                "usage": None,
            }
        )


def file_names(id: str, outputs: int, suffix: str) -> list[str]:
    """The names of the files of a generation: numbered where there are several."""
    if outputs == 1:
        return [f"{id}{suffix}"]
    return [f"{id}_{index}{suffix}" for index in range(outputs)]


def response_format(values: dict[str, Any], default: str) -> str:
    """`url` or `b64_json`. Raises a 400 `Refusal` for any other."""
    wanted = str(values.get("response_format") or default).lower()
    if wanted not in ("url", "b64_json"):
        raise detail(400, f"response_format={wanted} is not supported")
    return wanted


def edit_inputs(form: Form) -> str:
    """What an edit's picture follows from: digests of its uploads, or the addresses."""
    uploads = [f.sha256 for f in form.files if f.name in ("image", "image[]")]
    return " ".join(uploads or form.many.get("url", []) or form.many.get("url[]", []))
