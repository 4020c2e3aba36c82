"""Videos: jobs that are answered at once and run on, and their files."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from attrs import frozen

from .content import file_response
from .exchange import Exchange
from .fields import Field, as_validation_text, check, from_form
from .generation import Plan, plan, submit
from .jobs import Job, Jobs
from .messages import NotJson, Response, detail, from_json, json_response, unprocessable
from .movies import render_movie
from .multipart import Form, read_form
from .pictures import Recipe
from .routing import Route
from .scheduler import Work
from .state import State

FIELDS = (
    Field("prompt", "str", required=True, nullable=False),
    Field("enhance_prompt", "bool", False, nullable=False),
    Field("input_reference", "str"),
    Field("reference_url", "str"),
    Field("video_path", "str"),
    Field("video_url", "str"),
    Field("task_type", "str"),
    Field("model", "str"),
    Field("n", "int", 1),
    Field("num_outputs_per_prompt", "int"),
    Field("seconds", "int", 4),
    Field("size", "str", ""),
    Field("fps", "int"),
    Field("num_frames", "int"),
    Field("seed", "ints"),
    Field("width", "int"),
    Field("height", "int"),
    Field("num_inference_steps", "int"),
    Field("guidance_scale", "float"),
    Field("guidance_scale_2", "float"),
    Field("true_cfg_scale", "float"),
    Field("negative_prompt", "str"),
    Field("max_sequence_length", "int"),
    Field("flow_shift", "float"),
    Field("output_quality", "str", "default"),
    Field("output_path", "str"),
    Field("diffusers_kwargs", "object"),
)
_FORM = tuple(
    Field(f.name, "int" if f.kind == "ints" else f.kind)
    for f in FIELDS
    if f.name not in ("input_reference", "diffusers_kwargs")
)
_LIST = (Field("limit", "int", 20, nullable=False),)
_FPS = 24


@frozen
class VideosApi:
    """`POST` answers before the work begins; deleting a job does not stop it."""

    state: State

    def routes(self) -> list[Route]:
        return [
            Route("POST", "/v1/videos", self.create),
            Route("GET", "/v1/videos", self.list),
            Route("GET", "/v1/videos/{id}", self.get),
            Route("DELETE", "/v1/videos/{id}", self.delete),
            Route("GET", "/v1/videos/{id}/content", self.content),
        ]

    async def create(self, exchange: Exchange) -> Response:
        if "multipart/form-data" in exchange.header(b"content-type").lower():
            values, inputs = _from_form(await read_form(exchange))
        else:
            values, inputs = _from_json(await exchange.body())
        fps = _FPS if values["fps"] is None else values["fps"]
        seconds = 4 if values["seconds"] is None else values["seconds"]
        if fps <= 0:
            raise detail(400, f"fps must be a positive int, got {fps}")
        frames = fps * seconds if values["num_frames"] is None else values["num_frames"]
        made = plan(self.state, values, "VIDEO", frames=frames, inputs=inputs)
        work = submit(self.state, "video", made, exchange)
        job = Job(
            made.id,
            "video",
            {
                "model": values["model"] or self.state.config.name,
                "size": f"{made.shape.width}x{made.shape.height}",
                "seconds": str(round(frames / fps)),
                "quality": "standard",
                "file_path": f"{values['output_path'] or self.state.output_path}/{made.id}.mp4",
            },
            work,
            made.outputs,
            partial(_render, made, work, fps),
            ".mp4",
        )
        self.state.videos.add(job)
        return json_response(job.as_json(status="queued", progress=0))

    async def list(self, exchange: Exchange) -> Response:
        return json_response(page(self.state.videos, exchange))

    async def get(self, exchange: Exchange) -> Response:
        return json_response(known(self.state.videos.get(exchange.params["id"])).as_json())

    async def delete(self, exchange: Exchange) -> Response:
        job = known(self.state.videos.pop(exchange.params["id"]))
        return json_response(job.as_json(status="deleted"))

    async def content(self, exchange: Exchange) -> Response:
        job = known(self.state.videos.get(exchange.params["id"]))
        if job.status in ("queued", "in_progress"):
            raise detail(404, "Generation is still in-progress")
        variant = exchange.query.get("variant")
        index = 0 if variant is None else int(variant) if variant.isdecimal() else -1
        if job.status == "failed" or not 0 <= index < job.outputs:
            raise detail(404, f"Video variant {variant} not found")
        data = await self.state.renderer.file((job.id, index), partial(job.render, index))
        name = os.path.basename(job.paths[index])
        assert job.work.finished_at is not None
        return file_response(exchange, data, "video/mp4", name, job.work.finished_at)


def known(job: Job | None, noun: str = "Video") -> Job:
    """The job. Raises a 404 `Refusal` if there is none."""
    if job is None:
        raise detail(404, f"{noun} not found")
    return job


def page(jobs: Jobs, exchange: Exchange) -> dict[str, Any]:
    """A page of jobs as the query wants it. Raises a 422 `Refusal`."""
    query = exchange.query
    values, errors = check(query, _LIST, "query")
    limit, order = values["limit"], query.get("order", "desc")
    for bad, kind, side in (
        (not errors and limit < 1, "greater_than_equal", 1),
        (not errors and limit > 100, "less_than_equal", 100),
    ):
        if bad:
            text = f"Input should be {kind.split('_than')[0]} than or equal to {side}"
            errors.append(
                {
                    "type": kind,
                    "loc": ["query", "limit"],
                    "msg": text,
                    "input": query["limit"],
                    "ctx": {"ge" if side == 1 else "le": side},
                }
            )
    if order not in ("asc", "desc"):
        errors.append(
            {
                "type": "literal_error",
                "loc": ["query", "order"],
                "msg": "Input should be 'asc' or 'desc'",
                "input": order,
                "ctx": {"expected": "'asc' or 'desc'"},
            }
        )
    if errors:
        raise unprocessable(errors)
    return jobs.page(query.get("after"), limit, order)


def _render(made: Plan, work: Work, fps: int, index: int) -> bytes:
    recipe: Recipe = made.recipes(work)[index]
    return render_movie(recipe, made.shape.frames, fps)


def _from_json(body: bytes) -> tuple[dict[str, Any], str]:
    """Anything that is no JSON counts as an empty object, which then lacks a prompt: 400."""
    try:
        payload = from_json(body)
    except NotJson:
        payload = {}
    if not isinstance(payload, dict):
        payload = {}
    extra = payload.pop("extra_body", None)
    if isinstance(extra, str):
        extra = from_form(extra)
    if isinstance(extra, dict):
        payload = {**extra, **payload}
    values, errors = check(payload, FIELDS, shown=payload)
    if errors:
        text = as_validation_text("VideoGenerationsRequest", errors, payload)
        raise detail(400, f"Invalid request body: {text}")
    names = ("input_reference", "reference_url", "video_path", "video_url")
    return values, " ".join(str(values[name]) for name in names if values[name])


def _from_form(form: Form) -> tuple[dict[str, Any], str]:
    given: dict[str, Any] = dict(form.fields)
    for name in ("extra_body", "extra_params"):
        if name in form.fields:
            extra = from_form(form.fields[name])
            if not isinstance(extra, dict):
                raise detail(400, f"{name} is not valid JSON")
            given = {**extra, **given}
    values, errors = check(given, _FORM)
    if errors:
        raise unprocessable(errors)
    if not values["prompt"]:
        raise detail(400, "prompt is required")
    values["seconds"] = values["seconds"] or 4
    uploads = [f.sha256 for f in form.files if f.name in ("input_reference", "video_reference")]
    addresses = [values[n] for n in ("reference_url", "video_path", "video_url") if values[n]]
    return values, " ".join([*uploads, *addresses])
