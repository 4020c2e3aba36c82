"""`GET /v1/videos` and `GET /v1/meshes`: the jobs of all workers, or of one pool's, as one list."""

from __future__ import annotations

from typing import Any

from quart import Blueprint, request

from ..pool.assets import AssetKind
from ..pool.catalog import Page
from .body import named_pool
from .parts import parts

blueprint = Blueprint("jobs", __name__)


@blueprint.get("/v1/videos")
async def list_videos() -> dict[str, Any]:
    """One page of all video jobs."""
    return await parts().jobs.page(AssetKind.VIDEO, Page.of(request.args), named_pool())


@blueprint.get("/v1/meshes")
async def list_meshes() -> dict[str, Any]:
    """One page of all mesh jobs."""
    return await parts().jobs.page(AssetKind.MESH, Page.of(request.args), named_pool())
