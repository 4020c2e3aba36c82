"""Weight and LoRA changes on every eligible worker of a model. DESIGN section 6."""

from __future__ import annotations

from typing import Any

from attrs import define

from ..errors import BadRequest
from ..pool.targets import awake_targets, healthy_targets, model_of, no_workers
from ..pool.worker import Worker
from .broadcast import Call, answer, broadcast
from .client import ControlClient

# What a change must name; a body without it is refused before any worker is touched.
REQUIRED = {
    "/update_weights_from_disk": "model_path",
    "/update_weights_from_tensor": "serialized_named_tensors",
    "/v1/set_lora": "lora_nickname",
}


def check_body(path: str, content: Any) -> None:
    """Refuse a change that no worker can apply. Raises BadRequest."""
    if not isinstance(content, dict):
        raise BadRequest("Request body must be a JSON object", code="invalid_json")
    needed = REQUIRED.get(path)
    if needed is not None and not content.get(needed):
        raise BadRequest(f"The field {needed!r} is required", code="missing_field")


def check_beginning(held: bytes) -> None:
    """Refuse what cannot be a JSON object, by its beginning. Raises BadRequest."""
    if not held.lstrip().startswith(b"{"):
        raise BadRequest("Request body must be a JSON object", code="invalid_json")


@define(eq=False)
class WeightControl:
    """Broadcasts changes of weights and LoRA, and questions about them."""

    client: ControlClient

    async def change(self, chosen: list[Worker], call: Call) -> tuple[int, dict[str, Any]]:
        """Send the change to every eligible worker; status and body of the answer."""
        targets = awake_targets(chosen)
        if not targets.eligible:
            raise no_workers()
        return answer(await broadcast(self.client, targets.eligible, call), targets)

    async def ask(self, chosen: list[Worker], call: Call) -> tuple[int, dict[str, Any]]:
        """Ask every healthy worker; the answer also says whether those of each model agree."""
        targets = healthy_targets(chosen)
        if not targets.eligible:
            raise no_workers()
        rows = await broadcast(self.client, targets.eligible, call)
        status, body = answer(rows, targets)
        first: dict[str | None, Any] = {}
        for row in rows:
            first.setdefault(model_of(row.worker), row.body)
        agree = all(row.body == first[model_of(row.worker)] for row in rows)
        body["consistent"] = body["success"] and agree
        return status, body
