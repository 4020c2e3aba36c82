"""Rollouts: groups of samples with what a trainer wants to know, as msgpack of safetensors.

The answer is made while it is sent: gigabytes take no memory. Its size follows from the request;
`--rollout-bytes`, or `simulate_bytes` in the request, sets that of each `generated_output`.
"""

from __future__ import annotations

import math
import random
from typing import Any

from attrs import frozen

from .config import output_type
from .cost import Shape
from .exchange import Exchange
from .fields import Field, check
from .generation import Plan, plan, submit
from .messages import Refusal, Response, detail, server_error, unprocessable
from .msgpack import MsgpackError
from .msgpack import plan as plan_msgpack
from .routing import Route
from .scheduler import Work
from .state import State
from .tensors import tensor

_FIELDS = (
    Field("prompt", "str", required=True, nullable=False),
    Field("negative_prompt", "str"),
    Field("seed", "int"),
    Field("generator_device", "str", "cuda", nullable=False),
    Field("width", "int"),
    Field("height", "int"),
    Field("num_inference_steps", "int"),
    Field("num_outputs_per_prompt", "int"),
    Field("guidance_scale", "float"),
    Field("true_cfg_scale", "float"),
    Field("num_frames", "int"),
    Field("fps", "int"),
    Field("rollout", "bool", True, nullable=False),
    Field("rollout_sde_type", "str", "sde", nullable=False),
    Field("rollout_noise_level", "float", 0.7, nullable=False),
    Field("rollout_log_prob_no_const", "bool", False, nullable=False),
    Field("rollout_debug_mode", "bool", True, nullable=False),
    Field("rollout_return_denoising_env", "bool", False, nullable=False),
    Field("rollout_return_dit_trajectory", "bool", False, nullable=False),
    Field("rollout_sde_step_indices", "list"),
    Field("rollout_return_step_indices", "list"),
    Field("image_path", "list"),
    Field("suppress_logs", "bool", False, nullable=False),
    Field("extra_sampling_params", "object"),
    Field("simulate_bytes", "int"),
)
_STEPS = 50
_MOST_OUTPUTS = 1024  # the real worker has no bound
_CHANNELS = 16
_SDE_TYPES = ("sde", "cps", "ode")
_NO_LOG_PROB = (
    "p_ode is always 0, true log_prob is meaningless, set rollout_log_prob_no_const to True to"
    " enable log_prob computation"
)


@frozen
class RolloutApi:
    """A request without `seed` runs whole and then fails, as on the real worker."""

    state: State

    def routes(self) -> list[Route]:
        return [Route("POST", "/rollout/generate", self.generate)]

    async def generate(self, exchange: Exchange) -> Response:
        body = await exchange.model()
        extra = body.get("extra_sampling_params")
        merged = {**body, **extra} if isinstance(extra, dict) else body
        values, errors = check(merged, _FIELDS, shown=body)
        if errors:
            raise unprocessable(errors)
        seed = values["seed"]
        values["num_inference_steps"] = values["num_inference_steps"] or _STEPS
        if (kind := values["rollout_sde_type"]) not in _SDE_TYPES:
            message = f"rollout_sde_type must be one of {_SDE_TYPES}, got {kind!r}"
            raise _invalid(detail(400, message))
        undefined = values["rollout"] and kind == "ode" and not values["rollout_log_prob_no_const"]
        if undefined:  # found out at the first step
            values["num_inference_steps"] = 1
        output = output_type(self.state.config.task)
        frames = values["num_frames"] or 81 if output == "VIDEO" else 1
        try:
            made = plan(
                self.state, values, output, frames=frames, checked=False, most_outputs=_MOST_OUTPUTS
            )
        except Refusal as refusal:
            raise _invalid(refusal) from None
        work = submit(self.state, "rollout", made, exchange)
        await work.finished.wait()
        if work.error is not None:
            raise detail(500, str(work.error))
        if undefined:
            raise detail(500, f"Error executing request {made.id}: {_NO_LOG_PROB}")
        if seed is None:
            raise server_error()
        samples = [self._sample(made, work, values, i) for i in range(made.outputs)]
        try:
            encoded = plan_msgpack(samples)
        except MsgpackError:
            raise server_error() from None
        headers = [
            (b"content-length", str(encoded.size).encode()),
            (b"content-type", b"application/msgpack"),
        ]
        return Response(200, headers, pieces=encoded.pieces)

    def _sample(self, made: Plan, work: Work, values: dict[str, Any], index: int) -> dict[str, Any]:
        mark = made.recipes(work)[index].digest().hex()
        shape, rollout = made.shape, values["rollout"]
        size = values["simulate_bytes"] or self.state.config.rollout_bytes
        steps = len(values["rollout_return_step_indices"] or range(shape.steps))
        wanted = rollout and values["rollout_debug_mode"]
        return {
            "request_id": made.id,
            "prompt": made.prompt,
            "seed": values["seed"],
            "generated_output": tensor(f"{mark} output", _pixels(shape), _dtype(shape), size),
            "rollout_log_probs": tensor(f"{mark} log", (steps,), "float32") if rollout else None,
            "rollout_debug_tensors": _debug(mark, shape, steps) if wanted else None,
            "denoising_env": (
                _environment(mark) if rollout and values["rollout_return_denoising_env"] else None
            ),
            "dit_trajectory": (
                _trajectory(mark, shape)
                if rollout and values["rollout_return_dit_trajectory"]
                else None
            ),
            "inference_time_s": work.entry.seconds,
            "peak_memory_mb": None,
        }


def _invalid(refusal: Refusal) -> Refusal:
    text = refusal.answer.body.decode()
    message = text.partition('"detail":"')[2].removesuffix('"}')
    return detail(400, f"Invalid sampling params: {refusal.answer.status}: {message}")


def _pixels(shape: Shape) -> tuple[int, ...]:
    if shape.output == "VIDEO":
        return (3, shape.frames, shape.height, shape.width)
    return (3, shape.height, shape.width)


def _dtype(shape: Shape) -> str:
    return "float32" if shape.output == "VIDEO" else "bfloat16"


def _latents(shape: Shape) -> tuple[int, ...]:
    """Packed into tokens for an image, as they are for a video."""
    if shape.output == "VIDEO":
        frames = math.ceil((shape.frames - 1) / 4) + 1
        return (_CHANNELS, frames, math.ceil(shape.height / 8), math.ceil(shape.width / 8))
    return (math.ceil(shape.width / 16) * math.ceil(shape.height / 16), _CHANNELS)


def _debug(mark: str, shape: Shape, steps: int) -> dict[str, Any]:
    latents = (steps, *_latents(shape))
    return {
        "rollout_variance_noises": tensor(f"{mark} noise", latents, "float32"),
        "rollout_prev_sample_means": tensor(f"{mark} means", latents, "float32"),
        "rollout_noise_std_devs": tensor(f"{mark} deviations", (steps, 1), "float32"),
        "rollout_model_outputs": tensor(f"{mark} outputs", latents, "float32"),
    }


def _environment(mark: str) -> dict[str, Any]:
    width = random.Random(mark).choice((32, 64))
    return {
        "image_kwargs": None,
        "pos_cond_kwargs": {
            "encoder_hidden_states": tensor(f"{mark} text", (1, 512, width), "bfloat16"),
            "pooled_projections": tensor(f"{mark} pooled", (1, width), "bfloat16"),
        },
        "neg_cond_kwargs": None,
        "guidance": tensor(f"{mark} guidance", (), "bfloat16"),
    }


def _trajectory(mark: str, shape: Shape) -> dict[str, Any]:
    steps = shape.steps + 1
    return {
        "latents": tensor(f"{mark} latents", (steps, *_latents(shape)), "float32"),
        "timesteps": tensor("timesteps", (steps,), "float32"),
        "sigmas": tensor("sigmas", (steps,), "float32"),
    }
