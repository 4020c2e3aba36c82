"""The one table of routes: which method and path is routed how.

The first matching row wins. The relay follows this table, and docs/api.md documents it.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from enum import StrEnum

from attrs import field, frozen

from ..pool.assets import AssetKind
from ..pool.match import Need
from ..pool.worker import Task


class How(StrEnum):
    """How a request finds its worker."""

    OWN = "own"  # answered by the router itself
    GENERATE = "generate"  # one fitting worker, for as long as it generates
    SUBMIT = "submit"  # starts a job; its worker owns the job from then on
    OWNER = "owner"  # the worker that owns the asset named in the path
    CHANGE = "change"  # every eligible worker: weights, LoRA, memory
    TOGETHER = "together"  # every reachable worker, at the same moment
    REFUSED = "refused"  # no worker: one alone would get what all need, or nobody knows
    GATHER = "gather"  # every healthy worker; one row for each
    MERGED = "merged"  # every worker's list, merged into one
    ANY = "any"  # anything else: one routable worker
    PLAIN = "plain"  # one plain HTTP worker of the pool that the request names


@frozen
class Route:
    """One row. The method `*` matches any, `{name}` in `path` one segment, `{+name}` several."""

    methods: tuple[str, ...]
    path: str
    how: How
    task: Task | None = None
    guarded: bool = False  # reading it needs the admin key, too
    naming: tuple[str, ...] = ()  # words of which the path must have one
    sole: bool = False  # weights matter so much that only workers of one pool may fit
    _pattern: re.Pattern[str] = field(init=False, repr=False, eq=False)

    @_pattern.default
    def _compile(self) -> re.Pattern[str]:
        parts = re.split(r"(\{\+?\w+\})", self.path)
        regex = "".join(
            re.escape(part) if not part.startswith("{") else _group(part) for part in parts
        )
        # A line break in a path (%0A) is a character like any other.
        return re.compile(regex + r"/?\Z", re.DOTALL)

    def matches(self, method: str | None, path: str) -> bool:
        """Whether the row fits the request, or the path if `method` is None."""
        if method is not None and "*" not in self.methods and method not in self.methods:
            return False
        named = not self.naming or any(word in path.lower() for word in self.naming)
        return named and self._pattern.match(path) is not None

    @property
    def need(self) -> Need:
        """What a request of this row needs from its worker."""
        return {How.GENERATE: Need.SLOT, How.SUBMIT: Need.JOB}.get(self.how, Need.NOTHING)

    @property
    def kind(self) -> str:
        """The kind of endpoint under which speeds are learnt."""
        return self.task.value if self.how is How.SUBMIT and self.task else self.path

    @property
    def asset(self) -> AssetKind | None:
        """The kind of asset that the row is about, if any."""
        word = self.path.split("/")[2] if self.path.startswith("/v1/") else ""
        return AssetKind(word) if word in tuple(AssetKind) else None

    def parameter(self, path: str) -> str:
        """The part of `path` that fills the row's `{name}`."""
        match = self._pattern.match(path)
        assert match is not None
        return match[1]


def _group(part: str) -> str:
    return r"(.+)" if part.startswith("{+") else r"([^/]+)"


_G, _P, _D = ("GET",), ("POST",), ("DELETE",)
ROLLOUT = "/rollout/generate"

ROUTES: tuple[Route, ...] = (
    # The router's own.
    Route(("GET", "POST"), "/workers", How.OWN),
    Route(_P, "/workers/sleeping", How.OWN),
    Route(_G, "/workers/{+worker_id}/logs", How.OWN, guarded=True),  # prompts, other clients' keys
    Route(("PUT", "POST"), "/workers/{+worker_id}/restart", How.OWN),
    Route(("GET", "PUT", "DELETE"), "/workers/{+worker_id}", How.OWN),
    Route(_P, "/launcher/scale", How.OWN),
    Route(_P, "/config/reload", How.OWN),
    Route(("GET", "POST", "DELETE"), "/drain", How.OWN),
    Route(_P, "/add_worker", How.OWN),
    Route(_P, "/remove_worker", How.OWN),
    Route(_G, "/list_workers", How.OWN),
    Route(_G + _D, "/queue", How.OWN),
    Route(("GET", "POST"), "/weights", How.OWN),
    Route(_P, "/weights/sync", How.OWN),
    Route(_P, "/weights/begin", How.OWN),
    Route(_P, "/weights/commit", How.OWN),
    Route(_P, "/weights/abort", How.OWN),
    Route(_G, "/v1/models", How.OWN),
    Route(_G, "/v1/models/{+model}", How.OWN),
    Route(("GET", "HEAD"), "/health", How.OWN),
    Route(("GET", "HEAD"), "/live", How.OWN),
    Route(("GET", "HEAD"), "/ready", How.OWN),
    Route(_G, "/metrics", How.OWN),  # one worker's metrics say nothing of the pool
    Route(_G, "/engine_metrics", How.OWN),
    Route(_G, "/", How.OWN),
    Route(_G, "/dashboard", How.OWN),
    Route(_G, "/events", How.OWN),
    Route(_G, "/previews", How.OWN, guarded=True),  # what other clients have made
    Route(_G, "/previews/{id}", How.OWN, guarded=True),
    Route(_G, "/favicon.ico", How.OWN),
    # Generations.
    Route(_P, "/v1/images/generations", How.GENERATE, Task.IMAGE),
    Route(_P, "/v1/images/edits", How.GENERATE, Task.EDIT),
    Route(_P, ROLLOUT, How.GENERATE, sole=True),
    Route(_P, "/v1/diffusion/generate", How.GENERATE),
    Route(_P, "/v1/actions/generations", How.GENERATE),
    Route(_P, "/vertex_generate", How.GENERATE),
    Route(_G, "/v1/images/{id}/content", How.OWNER),
    # Jobs.
    Route(_P, "/v1/videos", How.SUBMIT, Task.VIDEO),
    Route(_G, "/v1/videos", How.MERGED, Task.VIDEO),
    Route(_G + _D, "/v1/videos/{id}", How.OWNER, Task.VIDEO),
    Route(_G, "/v1/videos/{id}/content", How.OWNER, Task.VIDEO),
    Route(_P, "/v1/meshes", How.SUBMIT, Task.MESH),
    Route(_G, "/v1/meshes", How.MERGED, Task.MESH),
    Route(_G + _D, "/v1/meshes/{id}", How.OWNER, Task.MESH),
    Route(_G, "/v1/meshes/{id}/content", How.OWNER, Task.MESH),
    # Weights, LoRA, memory.
    Route(_P, "/update_weights_from_disk", How.CHANGE),
    Route(_P, "/update_weights_from_tensor", How.CHANGE),
    Route(_P, "/v1/set_lora", How.CHANGE),
    Route(_P, "/v1/merge_lora_weights", How.CHANGE),
    Route(_P, "/v1/unmerge_lora_weights", How.CHANGE),
    Route(_P, "/release_memory_occupation", How.CHANGE),
    Route(_P, "/resume_memory_occupation", How.CHANGE),
    Route(_P, "/update_weights_from_distributed", How.TOGETHER),
    Route(_P, "/begin_weight_update", How.TOGETHER),
    Route(_P, "/end_weight_update", How.TOGETHER),
    Route(_P, "/pull_weights", How.TOGETHER),
    Route(_P, "/init_weights_update_group", How.TOGETHER),
    Route(_P, "/destroy_weights_update_group", How.TOGETHER),
    Route(_P, "/pause_generation", How.TOGETHER),
    Route(_P, "/continue_generation", How.TOGETHER),
    Route(_P, "/abort_request", How.TOGETHER),
    Route(_G + _P, "/flush_cache", How.TOGETHER),
    Route(_P, "/get_weights_checksum", How.GATHER),
    Route(_P, "/update_weights_from_tensor_checker", How.GATHER),
    Route(_G, "/v1/list_loras", How.GATHER),
    Route(_P, "/load_lora_adapter", How.REFUSED),
    Route(_P, "/unload_lora_adapter", How.REFUSED),
    Route(_P, "/update_weights_from_ipc", How.REFUSED),
    Route(_P, "/{+path}", How.REFUSED, naming=("weight", "lora", "memory", "cache")),
    # Anything else, so that the router hides nothing that a worker offers.
    Route(("*",), "/{+path}", How.ANY),
    Route(("*",), "*", How.ANY),
)


WEBSOCKET = "websocket"
"""The route of all WebSocket handshakes, in records and metrics."""

TO_PLAIN = Route(("*",), "*", How.PLAIN)
"""The row of all requests to a pool of plain HTTP workers."""


def _first(path: str) -> str:
    """The first segment of a path; empty for a row that begins with a parameter."""
    segment = path.split("/", 2)[1] if path.startswith("/") else ""
    return "" if segment.startswith("{") else segment


# Most rows need no match: the first segment of their path differs.
_BY_FIRST = {
    first: tuple(route for route in ROUTES if _first(route.path) in ("", first))
    for first in (_first(route.path) for route in ROUTES)
}


def nearest(path: str) -> str | None:
    """The path of the table that is most similar to this one; None if no path is similar."""
    found = get_close_matches(path, (row.path for row in ROUTES if "+path" not in row.path), n=1)
    return found[0] if found else None


def known(path: str) -> bool:
    """Whether a row fits this path with any method."""
    rows = _BY_FIRST.get(_first(path), _BY_FIRST[""])
    return any("+path" not in row.path and row.matches(None, path) for row in rows)


def find(method: str, path: str) -> Route:
    """The row for a request; one always fits. `path` is percent-decoded.

    The router's own paths match with any method, so that the router and not a worker refuses a
    wrong method. So do paths that must reach all workers: no worker may get them alone.
    """
    for route in _BY_FIRST.get(_first(path), _BY_FIRST[""]):
        ours = route.how in (How.OWN, How.CHANGE, How.TOGETHER, How.GATHER)
        if route.matches(None if ours else method, path):
            return route
    return ROUTES[-1]
