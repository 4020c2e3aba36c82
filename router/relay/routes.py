"""The one table of what the router does with a request: method and path to how it is routed.

Read from top to bottom, first match wins. The relay follows it, and so does docs/api.md.
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
    GATHER = "gather"  # asked of every healthy worker; rows
    MERGED = "merged"  # every worker's list, merged into one
    ANY = "any"  # anything else: one routable worker


@frozen
class Route:
    """One row. `*` in `methods` is any method; `{name}` in `path` is one segment, `{+name}` any."""

    methods: tuple[str, ...]
    path: str
    how: How
    task: Task | None = None
    guarded: bool = False  # reading it needs the admin key, too
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
        """Whether the row is for this request; no method: for this path."""
        if method is not None and "*" not in self.methods and method not in self.methods:
            return False
        return self._pattern.match(path) is not None

    @property
    def need(self) -> Need:
        """What a request of this row needs of its worker."""
        return {How.GENERATE: Need.SLOT, How.SUBMIT: Need.JOB}.get(self.how, Need.NOTHING)

    @property
    def kind(self) -> str:
        """The kind of endpoint, as speeds are learnt."""
        return self.task.value if self.how is How.SUBMIT and self.task else self.path

    @property
    def asset(self) -> AssetKind | None:
        """What kind of asset the row is about."""
        word = self.path.split("/")[2] if self.path.startswith("/v1/") else ""
        return AssetKind(word) if word in tuple(AssetKind) else None

    def parameter(self, path: str) -> str:
        """What stands in `path` for the row's `{name}`."""
        match = self._pattern.match(path)
        assert match is not None
        return match[1]


def _group(part: str) -> str:
    return r"(.+)" if part.startswith("{+") else r"([^/]+)"


_G, _P, _D = ("GET",), ("POST",), ("DELETE",)

ROUTES: tuple[Route, ...] = (
    # The router's own.
    Route(("GET", "POST"), "/workers", How.OWN),
    Route(_G, "/workers/{+worker_id}/logs", How.OWN, guarded=True),  # prompts, keys of others
    Route(("PUT", "POST"), "/workers/{+worker_id}/restart", How.OWN),
    Route(("GET", "PUT", "DELETE"), "/workers/{+worker_id}", How.OWN),
    Route(_P, "/launcher/scale", How.OWN),
    Route(_P, "/add_worker", How.OWN),
    Route(_P, "/remove_worker", How.OWN),
    Route(_G, "/list_workers", How.OWN),
    Route(_G, "/queue", How.OWN),
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
    Route(_G, "/metrics", How.OWN),  # of one worker they would say nothing of the pool
    Route(_G, "/engine_metrics", How.OWN),
    Route(_G, "/", How.OWN),
    Route(_G, "/favicon.ico", How.OWN),
    # Generations.
    Route(_P, "/v1/images/generations", How.GENERATE, Task.IMAGE),
    Route(_P, "/v1/images/edits", How.GENERATE, Task.EDIT),
    Route(_P, "/rollout/generate", How.GENERATE),
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
    Route(_P, "/get_weights_checksum", How.GATHER),
    Route(_P, "/update_weights_from_tensor_checker", How.GATHER),
    Route(_G, "/v1/list_loras", How.GATHER),
    # Anything else, so that the router hides nothing that a worker offers.
    Route(("*",), "/{+path}", How.ANY),
    Route(("*",), "*", How.ANY),
)


def _first(path: str) -> str:
    """The first segment of a path; of a row's, empty where it can be any."""
    segment = path.split("/", 2)[1] if path.startswith("/") else ""
    return "" if segment.startswith("{") else segment


# Most rows need not be tried: the first segment of their path is another one.
_BY_FIRST = {
    first: tuple(route for route in ROUTES if _first(route.path) in ("", first))
    for first in (_first(route.path) for route in ROUTES)
}


def nearest(path: str) -> str | None:
    """The path of the table that is most like this one; None if none is."""
    found = get_close_matches(path, (row.path for row in ROUTES if row.how is not How.ANY), n=1)
    return found[0] if found else None


def known(path: str) -> bool:
    """Whether a row is for this path, with whatever method."""
    rows = _BY_FIRST.get(_first(path), _BY_FIRST[""])
    return any(row.how is not How.ANY and row.matches(None, path) for row in rows)


def find(method: str, path: str) -> Route:
    """The row for a request; there always is one. `path` is percent-decoded.

    A path of the router's own stays its own with any method, so that a wrong one is refused here
    and not by a worker. So does one that all workers must get: one of them must not get it alone.
    """
    for route in _BY_FIRST.get(_first(path), _BY_FIRST[""]):
        ours = route.how in (How.OWN, How.CHANGE, How.GATHER)
        if route.matches(None if ours else method, path):
            return route
    return ROUTES[-1]
