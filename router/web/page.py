"""The live page: one document, with its style and its script within itself."""

from __future__ import annotations

from base64 import b64encode
from functools import cache
from hashlib import sha256
from importlib import resources
from typing import Any

from quart import Blueprint, Response, request

from .. import __version__
from ..errors import NotFound

blueprint = Blueprint("page", __name__)

_STYLES = ("style.css",)
_SCRIPTS = (
    *("pool.js", "charts.js", "workers.js", "panels.js", "actions.js", "previews.js"),
    "playground.js",
)
_MORE = ("events", "health", "workers", "queue", "weights", "v1/models")


@blueprint.get("/")
@blueprint.get("/dashboard")
async def show() -> Response | dict[str, Any]:
    """The page; at `/`, clients that are no browsers get links."""
    known = request.accept_mimetypes.best_match(["application/json", "text/html"])
    if request.path == "/" and known != "text/html":
        links = {name: f"/{name}" for name in ("dashboard", *_MORE)}
        return {"router": "SGLang diffusion router", "version": __version__, **links}
    body, policy, tag = _document()
    headers = {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
        "Vary": "Accept",
        "ETag": f'"{tag}"',
    }
    if tag in request.if_none_match:
        return Response("", 304, headers)
    return Response(body, headers=headers)


@blueprint.get("/favicon.ico")
async def icon() -> Response:
    """The page has its icon within itself."""
    raise NotFound("The router has no such file: the page holds its icon", code="unknown_path")


@cache
def _document() -> tuple[bytes, str, str]:
    """The page, its content security policy and its tag."""
    folder = resources.files(__package__) / "dashboard"

    def read(*names: str) -> str:
        return "".join((folder / name).read_text(encoding="utf-8") for name in names)

    style, script = read(*_STYLES), f"'use strict';\n{read(*_SCRIPTS)}"
    text = read("page.html").replace("/*style*/", style).replace("/*script*/", script)
    allowed = {
        "default-src": "'none'",
        "script-src": _hash(script),
        "style-src": _hash(style),
        "img-src": "data: blob:",
        "media-src": "blob:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    policy = "; ".join(f"{name} {value}" for name, value in allowed.items())
    body = text.encode()
    return body, policy, sha256(body).hexdigest()[:16]


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
