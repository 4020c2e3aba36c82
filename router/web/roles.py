"""The role of a worker, as requests give it: `pool`, `kind` and `health_path`."""

from __future__ import annotations

import re
from typing import Any

from attrs import evolve

from ..errors import BadRequest, Conflict
from ..pool.pools import DEFAULT, NAME, USUAL, Kind, Role
from ..pool.worker import Weights, Worker
from .parts import Parts

_PATTERNS = {
    "pool": (NAME, "a name of at most 64 letters, digits, '.', '_' and '-'"),
    "kind": ("|".join(Kind), " or ".join(Kind)),
    "health_path": (r"/[!-~]*", "a path that begins with /"),
}


def wanted_role(
    parts: Parts, url: str, known: Worker | None, content: dict[str, Any]
) -> Role | None:
    """The role that the fields ask for; None if they ask for none. Raises BadRequest, and Conflict
    if the worker cannot have it now."""
    given = {name: content[name] for name in _PATTERNS if content.get(name) is not None}
    if not given:
        return None
    for name, value in given.items():
        pattern, what = _PATTERNS[name]
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise BadRequest(f"{name} must be {what}", code="invalid_field")
    if "kind" in given:
        given["kind"] = Kind(given["kind"])
    before = known.role if known is not None else parts.registry.roles.get(url, USUAL)
    role = evolve(before, **given)
    plain = role.kind is Kind.HTTP
    if plain and role.pool == DEFAULT:
        raise BadRequest("A worker of kind http needs a pool of its own", code="invalid_field")
    if not plain and "health_path" in given:
        raise BadRequest("health_path is only for workers of kind http", code="invalid_field")
    if known is not None and known.role.kind is not role.kind:
        raise Conflict(
            f"{url} is registered as {known.role.kind}: remove it first", code="wrong_kind"
        )
    members = [w for w in parts.registry if w.pool == role.pool and w is not known]
    if any(worker.role.kind is not role.kind for worker in members):
        raise Conflict(
            f"The workers of the pool {role.pool} are not of kind {role.kind}", code="wrong_kind"
        )
    if known is not None and known.pool != role.pool:
        busy = parts.agents.operations.busy(known) or known.weights is Weights.UPDATING
        if busy:
            raise Conflict(
                f"A change, a sleep or a wake of {url} is under way; it cannot move now",
                code="worker_busy",
            )
    return role
