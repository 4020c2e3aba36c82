"""The Quart app: all requests that the router answers itself."""

from __future__ import annotations

from typing import Any

import quart
from quart import g, request
from quart.json.provider import DefaultJSONProvider
from quart_trio import QuartTrio
from werkzeug.routing import MapAdapter

from ..front.asgi import link_of
from ..text import to_json
from . import (
    control,
    errors,
    jobs,
    launcher,
    live,
    models,
    ops,
    page,
    previews,
    queue,
    weights,
    workers,
)
from .parts import Parts
from .uploads import Connection


class _Json(DefaultJSONProvider):
    """Workers may report values that JSON cannot express, such as NaN."""

    def dumps(self, obj: Any, **kwargs: Any) -> str:
        return to_json(obj, kwargs.get("separators"))


class _App(QuartTrio):
    json_provider_class = _Json

    def create_url_adapter(self, request: Any) -> MapAdapter | None:
        """No route depends on Host, which may not resolve."""
        if request is None:
            return None
        return self.url_map.bind("router", default_method=request.method, path_info=request.path)


def create_app(parts: Parts) -> QuartTrio:
    """The app over these parts. It serves HTTP only; WebSockets belong to the relay."""
    app = _App("router", static_folder=None, template_folder=None)
    # Quart's own deadlines cut an answer silently; the server shell and `Upload` keep ours.
    app.config["RESPONSE_TIMEOUT"] = None
    app.config["BODY_TIMEOUT"] = None
    app.config["MAX_CONTENT_LENGTH"] = None
    # An error that `errors` does not handle is one of the core, and must end the process.
    app.config["PROPAGATE_EXCEPTIONS"] = True
    app.asgi_http_class = Connection
    # Worker ids are URLs, so `//` in a path is intended.
    app.url_map.merge_slashes = False
    app.url_map.strict_slashes = False
    parts.attach(app.extensions)
    app.before_request(_name_request)
    app.after_request(_return_name)
    errors.install(app)
    rooms = (workers, launcher, models, jobs, control, weights, queue, ops, live, page, previews)
    for room in rooms:
        app.register_blueprint(room.blueprint)
    return app


async def _name_request() -> None:
    g.record = link_of(request.scope).record  # type: ignore[arg-type]


async def _return_name(response: quart.wrappers.Response) -> quart.wrappers.Response:
    headers = response.headers
    headers["X-Request-Id"] = g.record.request_id
    headers.setdefault("X-Content-Type-Options", "nosniff")
    headers.setdefault("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
    headers.setdefault("Referrer-Policy", "no-referrer")
    return response
