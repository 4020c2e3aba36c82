"""Meshes: jobs like videos, from an input image to a glb or obj file."""

from __future__ import annotations

import hashlib
import os
from functools import partial
from typing import Any

from attrs import frozen

from .api_videos import known, page
from .content import file_response
from .exchange import Exchange
from .fields import Field, as_validation_text, check
from .generation import Plan, plan, submit
from .jobs import Job
from .meshes import render_mesh
from .messages import NotJson, Response, detail, from_json, json_response, unprocessable
from .multipart import read_form
from .routing import Route
from .scheduler import Work
from .state import State

_FIELDS = (
    Field("prompt", "str", "generate 3d mesh", nullable=False),
    Field("input_image", "str"),
    Field("model", "str"),
    Field("seed", "ints"),
    Field("num_inference_steps", "int"),
    Field("guidance_scale", "float"),
    Field("negative_prompt", "str"),
    Field("output_format", "str", "glb"),
)
_FORM = (*(f for f in _FIELDS if f.kind != "ints"), Field("seed", "int"))
_MEDIA = {"glb": "model/gltf-binary", "obj": "text/plain; charset=utf-8"}


@frozen
class MeshesApi:
    """`POST` answers before the work begins."""

    state: State

    def routes(self) -> list[Route]:
        return [
            Route("POST", "/v1/meshes", self.create),
            Route("GET", "/v1/meshes", self.list),
            Route("GET", "/v1/meshes/{id}", self.get),
            Route("DELETE", "/v1/meshes/{id}", self.delete),
            Route("GET", "/v1/meshes/{id}/content", self.content),
        ]

    async def create(self, exchange: Exchange) -> Response:
        if "multipart/form-data" in exchange.header(b"content-type").lower():
            values, inputs = await self._from_form(exchange)
        else:
            values, inputs = _from_json(await exchange.body())
        if not inputs:
            raise detail(422, "An input image is required for mesh generation")
        made = plan(self.state, values, "MESH", inputs=inputs)
        kind = "obj" if str(values["output_format"]).lower() == "obj" else "glb"
        work = submit(self.state, "mesh", made, exchange)
        job = Job(
            made.id,
            "mesh",
            {
                "model": values["model"] or "",
                "format": kind,
                "file_path": f"{self.state.output_path}/{made.id}.{kind}",
            },
            work,
            1,
            partial(_render, made, work, kind),
            f".{kind}",
        )
        self.state.meshes.add(job)
        return json_response(job.as_json(status="queued", progress=0))

    async def list(self, exchange: Exchange) -> Response:
        return json_response(page(self.state.meshes, exchange))

    async def get(self, exchange: Exchange) -> Response:
        job = known(self.state.meshes.get(exchange.params["id"]), "Mesh")
        return json_response(await self._told(job))

    async def delete(self, exchange: Exchange) -> Response:
        job = known(self.state.meshes.pop(exchange.params["id"]), "Mesh")
        return json_response({**await self._told(job), "status": "deleted"})

    async def content(self, exchange: Exchange) -> Response:
        job = known(self.state.meshes.get(exchange.params["id"]), "Mesh")
        if job.status != "completed":
            raise detail(404, "Mesh output is not available")
        data = await self._file(job)
        assert job.work.finished_at is not None
        media = _MEDIA[job.fields["format"]]
        name = os.path.basename(job.paths[0])
        return file_response(exchange, data, media, name, job.work.finished_at)

    async def _told(self, job: Job) -> dict[str, Any]:
        told = job.as_json()
        if job.status == "completed":
            told["file_size_bytes"] = len(await self._file(job))
        return told

    async def _file(self, job: Job) -> bytes:
        return await self.state.renderer.file(job.id, partial(job.render, 0))

    async def _from_form(self, exchange: Exchange) -> tuple[dict[str, Any], str]:
        form = await read_form(exchange)
        values, errors = check(form.fields, _FORM)
        if errors:
            raise unprocessable(errors)
        uploads = [f.sha256 for f in form.files if f.name in ("image", "image[]")]
        inputs = uploads or form.many.get("url", []) or form.many.get("url[]", [])
        if not inputs:
            raise detail(422, "Field 'image' or 'url' is required for mesh generation")
        return values, inputs[0]


def _from_json(body: bytes) -> tuple[dict[str, Any], str]:
    try:
        payload = from_json(body)
    except NotJson:
        payload = {}
    if not isinstance(payload, dict):
        payload = {}
    values, errors = check(payload, _FIELDS, shown=payload)
    if errors:
        text = as_validation_text("MeshGenerationsRequest", errors, payload)
        raise detail(400, f"Invalid request body: {text}")
    image = values["input_image"]
    return values, hashlib.sha256(image.encode()).hexdigest() if image else ""


def _render(made: Plan, work: Work, kind: str, index: int) -> bytes:
    return render_mesh(made.recipes(work)[index], kind)
