"""Weights pushed as tensors, and the check of what was pushed.

A payload is base64. Where it decodes to a JSON object of texts, those are its named tensors and
their digests, which `update_weights_from_tensor_checker` then knows; a pickle stands for all
tensors of the module; anything else is refused. A payload of more than 4 KiB is hashed while it
arrives, never held, and stands for all tensors too.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Any

from attrs import frozen

from .api_weights import change, json_object, names_in, wrapped
from .exchange import Exchange
from .messages import NotJson, Response, from_json, server_error, unsuccessful
from .routing import Route
from .skim import SkimError, Skimmer
from .state import State
from .weights import WeightsError, digest

_SECONDS = 0.2
_PICKLE = b"\x80"


@frozen
class TensorsApi:
    """A refused update may leave weights partly new; `fail_next_update` does that on demand."""

    state: State

    def routes(self) -> list[Route]:
        return [
            Route("POST", "/update_weights_from_tensor", self.update),
            Route("POST", "/update_weights_from_tensor_checker", self.check),
        ]

    async def update(self, exchange: Exchange) -> Response:
        skimmer = Skimmer()
        try:
            async for piece in exchange.pieces():
                skimmer.feed(piece)
            body = skimmer.value()
        except SkimError:
            raise server_error() from None
        if not isinstance(body, dict):
            raise server_error()
        if not body.get("serialized_named_tensors"):
            raise unsuccessful(400, "serialized_named_tensors is required")
        scheduler = self.state.scheduler
        targets = names_in(body, "target_modules")
        alpha = body.get("lora_alpha")
        if not isinstance(alpha, int | float | None):
            raise unsuccessful(500, "lora_alpha: expected a number")
        as_lora = body.get("weight_update_mode") == "lora_merge"

        def act() -> str:
            tensors = self._tensors(body)
            if not as_lora:
                return scheduler.weights.from_tensors(tensors, targets, wrapped(scheduler))
            if targets is not None and len(targets) != 1:
                raise WeightsError(
                    "LoRA IPC weight update requires exactly one target module per request"
                )
            (target,) = targets or ["transformer"]
            if target != "transformer":
                raise WeightsError(
                    "LoRA IPC weight update supports target_modules in "
                    f"['transformer', 'transformer_2'], got {target!r}"
                )
            mark = digest(*(f"{name}={value}" for name, value in sorted(tensors.items())))
            scheduler.loras.push(mark, alpha)
            return (
                f"Updated {len(tensors)} LoRA layers in {target} from IPC tensors "
                "(skipped 0 unknown layers)."
            )

        return await change(
            self.state,
            exchange,
            "update_weights_from_tensor",
            act,
            _SECONDS,
            {
                "load_format": body.get("load_format"),
                "target_modules": targets,
                "weight_update_mode": body.get("weight_update_mode"),
            },
        )

    async def check(self, exchange: Exchange) -> Response:
        body = await json_object(exchange)
        target, expected = body.get("target_module"), body.get("expected_named_tensors_sha256")
        if not target:
            raise unsuccessful(400, "target_module is required")
        if not isinstance(expected, dict) or not expected:
            raise unsuccessful(400, "expected_named_tensors_sha256 is required")
        sums: dict[str, str] = expected

        def act() -> str:
            return self.state.scheduler.weights.check(str(target), sums)

        return await change(
            self.state,
            exchange,
            "update_weights_from_tensor_checker",
            act,
            _SECONDS,
            {"target_module": target},
        )

    def _tensors(self, body: dict[str, Any]) -> dict[str, str]:
        """Names and digests of what was pushed. Raises `WeightsError`."""
        payloads, labels = body["serialized_named_tensors"], body.get("payload_gpu_uuids")
        if not isinstance(payloads, list):
            raise WeightsError("serialized_named_tensors must be a list")
        gpus = self.state.config.num_gpus
        if labels is not None and not isinstance(labels, list):
            raise WeightsError("payload_gpu_uuids must be a list")
        if labels is not None and len(labels) != len(payloads):
            raise WeightsError(
                f"payload_gpu_uuids needs one entry per payload, got {len(labels)} for "
                f"{len(payloads)} payloads"
            )
        if labels is None and len(payloads) not in (1, gpus):
            raise WeightsError(
                f"serialized_named_tensors size must be 1 or world_size ({gpus}), "
                f"got {len(payloads)}"
            )
        tensors: dict[str, str] = {}
        for payload in payloads:
            tensors |= _read(str(payload))
        return tensors


def _read(payload: str) -> dict[str, str]:
    if payload.startswith("sha256:"):
        return {"*": payload}
    try:
        data = base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError):
        raise WeightsError(
            "Failed to deserialize serialized_named_tensors: Non-base64 digit found"
        ) from None
    try:
        named = from_json(data)
    except NotJson:
        named = None
    if isinstance(named, dict) and named:
        return {str(name): str(value) for name, value in named.items()}
    if not data.startswith(_PICKLE):
        key = repr(data[:1].decode("latin-1"))
        raise WeightsError(
            f"Failed to deserialize serialized_named_tensors: invalid load key, {key}."
        )
    return {"*": f"sha256:{hashlib.sha256(payload.encode()).hexdigest()}"}
