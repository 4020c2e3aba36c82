"""Endpoints that tell about the worker: health, models, server and model information."""

from __future__ import annotations

from typing import Any

from attrs import frozen

from .config import VERSION, accepts_images, output_type
from .exchange import Exchange
from .messages import Response, detail, json_response, unknown_model, wall_seconds
from .routing import Route
from .scheduler import SchedulerError
from .state import State

_PIPELINES = {
    "IMAGE": "FluxPipeline",
    "VIDEO": "WanPipeline",
    "MESH": "Hunyuan3D2Pipeline",
    "ACTION": "Pi05Pipeline",
}
WARM_UP_BYPASS = (
    "/metrics",
    "/liveness",
    "/health",
    "/health_generate",
    "/model_info",
    "/server_info",
)


@frozen
class InfoApi:
    """Health is answered while warming, dead or asleep; models wait for the warm-up."""

    state: State

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/liveness", self.liveness),
            Route("GET", "/health", self.health),
            Route("GET", "/models", self.models_short),
            Route("GET", "/server_info", self.server_info),
            Route("GET", "/model_info", self.model_info),
            Route("GET", "/health_generate", self.health),
            Route("GET", "/stats", self.stats),
            Route("GET", "/v1/model_info", self.model_path),
            Route("GET", "/v1/models", self.models),
            Route("GET", "/v1/models/{model:path}", self.model),
        ]

    async def liveness(self, _: Exchange) -> Response:
        return json_response({"status": "ok"})

    async def health(self, _: Exchange) -> Response:
        if reason := self.state.scheduler.failure:
            return json_response({"status": "unhealthy", "error": reason}, 503)
        if not self.state.warm:
            return Response(503, [(b"content-length", b"0")])
        return json_response({"status": "ok"})

    async def server_info(self, _: Exchange) -> Response:
        config = self.state.config
        return json_response(
            {
                "model_path": config.model_path,
                "served_model_name": config.name,
                "tp_size": config.tp_size,
                "dp_size": config.dp_size,
                "version": VERSION,
            }
        )

    async def model_info(self, _: Exchange) -> Response:
        config = self.state.config
        told: dict[str, Any] = {
            "model_path": config.model_path,
            "is_generation": True,
            "model_type": "diffusion",
            "architectures": [self._pipeline],
            "has_image_understanding": any(accepts_images(task) for task in config.tasks),
            "has_audio_understanding": False,
            "task_type": config.task,
            **self._supported,
            "output_types": sorted({output_type(task) for task in config.tasks}),
            "is_image_gen": output_type(config.task) == "IMAGE",
        }
        return json_response(told)

    async def model_path(self, _: Exchange) -> Response:
        return json_response({"model_path": self.state.config.model_path})

    async def models(self, _: Exchange) -> Response:
        return json_response({"object": "list", "data": [self._card()]})

    async def model(self, exchange: Exchange) -> Response:
        name = exchange.params["model"]
        if name != self.state.config.name:
            raise unknown_model(name)
        return json_response(self._card())

    async def models_short(self, _: Exchange) -> Response:
        return json_response(
            {
                "model_path": self.state.config.model_path,
                "num_gpus": self.state.config.num_gpus,
                "task_type": self.state.config.task,
                **self._supported,
                "dit_precision": "bf16",
                "vae_precision": self._vae_precision,
                "vae_decode_precision": "bf16" if self._vae_precision == "fp32" else None,
                "pipeline_name": self._pipeline,
                "pipeline_class": self._pipeline,
            }
        )

    async def stats(self, _: Exchange) -> Response:
        told: dict[str, Any] = {"status": "ok", "model_path": self.state.config.model_path}
        try:
            await self.state.scheduler.control("stats", lambda: None, 0)
            told["disagg"] = {"role": "monolithic", "message": "not in disagg mode"}
        except SchedulerError as error:
            told["disagg"] = {"error": str(error)}
        return json_response(told)

    def _card(self) -> dict[str, Any]:
        config = self.state.config
        return {
            "id": config.name,
            "object": "model",
            "created": wall_seconds(),
            "owned_by": "sglang",
            "root": config.name,
            "parent": None,
            "max_model_len": None,
            "num_gpus": config.num_gpus,
            "task_type": config.task,
            **self._supported,
            "dit_precision": "bf16",
            "vae_precision": self._vae_precision,
            "pipeline_name": self._pipeline,
            "pipeline_class": self._pipeline,
        }

    @property
    def _supported(self) -> dict[str, Any]:
        config = self.state.config
        return {} if config.legacy_models else {"supported_task_types": list(config.tasks)}

    @property
    def _pipeline(self) -> str:
        return _PIPELINES[output_type(self.state.config.task)]

    @property
    def _vae_precision(self) -> str:
        return "fp32" if output_type(self.state.config.task) == "VIDEO" else "bf16"


def scheduler_failed(error: SchedulerError) -> Exception:
    """How endpoints answer with `detail` when the scheduler failed."""
    return detail(500, str(error))
