"""`/previews`: the newest images, for the live page."""

from __future__ import annotations

from typing import Any

from quart import Blueprint, Response

from .. import threads
from ..errors import NotFound
from ..observe.previews import Previews
from .parts import parts

blueprint = Blueprint("previews", __name__)


@blueprint.get("/previews")
async def previews() -> dict[str, Any]:
    """The newest images, without the images themselves."""
    return {"previews": [one.row() for one in _enabled()]}


@blueprint.get("/previews/<number>")
async def preview(number: str) -> Response:
    """One image."""
    found = _enabled().find(number)
    image = None
    if found is not None:
        try:
            image = await threads.run(found.image)
        except OSError:  # no thread can be started now
            image = found.image()
    if image is None:
        raise NotFound(f"There is no preview {number}, or none any more", code="unknown_preview")
    data, kind = image
    headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "private, max-age=3600"}
    return Response(data, headers=headers, content_type=kind)


def _enabled() -> Previews:
    found = parts().previews
    if not found.enabled:
        raise NotFound(
            "The router keeps no previews: start it with --dashboard-previews", code="previews_off"
        )
    return found
