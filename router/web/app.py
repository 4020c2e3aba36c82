"""The Quart app: everything that the router answers itself."""

from __future__ import annotations

from typing import Any

import quart
from quart import g, request
from quart.json.provider import DefaultJSONProvider
from quart_trio import QuartTrio
from werkzeug.routing import MapAdapter

from ..front.asgi import link_of
from ..text import to_json
from . import control, errors, jobs, launcher, models, ops, queue, weights, workers
from .parts import Parts
from .uploads import Connection


class _Json(DefaultJSONProvider):
    """What workers say may hold what JSON has no word for: NaN, say."""

    def dumps(self, obj: Any, **kwargs: Any) -> str:
        return to_json(obj, kwargs.get("separators"))


class _App(QuartTrio):
    json_provider_class = _Json

    def create_url_adapter(self, request: Any) -> MapAdapter | None:
        """No route depends on Host, which may be no name that can be looked up."""
        if request is None:
            return None
        return self.url_map.bind("router", default_method=request.method, path_info=request.path)


def create_app(parts: Parts) -> QuartTrio:
    """The app over these parts. It serves HTTP only; WebSockets belong to the relay."""
    app = _App("router", static_folder=None, template_folder=None)
    # Quart's own deadlines cut an answer silently; ours are kept by the server shell and `Upload`.
    app.config["RESPONSE_TIMEOUT"] = None
    app.config["BODY_TIMEOUT"] = None
    app.config["MAX_CONTENT_LENGTH"] = None
    # What `errors` lets out is an error of the core, which ends the process.
    app.config["PROPAGATE_EXCEPTIONS"] = True
    app.asgi_http_class = Connection
    # Worker ids are URLs: `//` in a path is meant, not a slip.
    app.url_map.merge_slashes = False
    app.url_map.strict_slashes = False
    parts.attach(app.extensions)
    app.before_request(_name_request)
    app.after_request(_return_name)
    errors.install(app)
    for room in (workers, launcher, models, jobs, control, weights, queue, ops):
        app.register_blueprint(room.blueprint)
    return app


async def _name_request() -> None:
    g.record = link_of(request.scope).record  # type: ignore[arg-type]


async def _return_name(response: quart.wrappers.Response) -> quart.wrappers.Response:
    response.headers["X-Request-Id"] = g.record.request_id
    return response
