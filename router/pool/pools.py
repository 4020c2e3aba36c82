"""Named pools: the part of the workers that a request means, and how the router talks to them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from enum import StrEnum
from typing import TYPE_CHECKING

from attrs import frozen

from ..errors import NotFound, PoolUnavailable, RouterError

if TYPE_CHECKING:
    from .registry import Registry
    from .worker import Worker

DEFAULT = "default"
"""The pool of workers that are given none."""

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
"""The pattern of a pool's name."""

_OF_POOL = re.compile(rf"(?s)(.*) \(pool ({NAME})\)")


class Kind(StrEnum):
    """What answers at a worker's URL."""

    SGLANG = "sglang"
    HTTP = "http"  # any HTTP server: no models, weights or memory that the router knows of


@frozen
class Role:
    """What a worker is in the pool. `health_path`: what an HTTP worker is probed with; any 2xx is
    healthy."""

    pool: str = DEFAULT
    kind: Kind = Kind.SGLANG
    health_path: str = "/health"


USUAL = Role()
"""The role of a worker that is given none."""


class UnknownPool(NotFound):
    """The router knows nothing of the pool that the request names."""

    default_code = "unknown_pool"

    def __init__(self, pool: str, workers: Iterable[Worker]) -> None:
        names = pools_of(workers)
        known = ", ".join(names) or "none"
        super().__init__(
            f"No worker belongs to the pool {pool[:64]!r}; the pools are: {known}",
            details={"pools": names},
        )


def absent(pool: str | None, registry: Registry) -> RouterError | None:
    """The error for a request to a pool without workers; None if it has workers, or none is named.
    A known pool will have workers again: the request may be sent again."""
    if pool is None or any(worker.pool == pool for worker in registry):
        return None
    if not registry.knows(pool):
        return UnknownPool(pool, registry)
    return PoolUnavailable(
        f"The pool {pool!r} has no workers at present",
        code="no_workers",
        details={"pools": pools_of(registry)},
    )


def name_plain(pools: Collection[str]) -> str:
    """How to name one of these pools of plain HTTP workers, as a part of a sentence."""
    return f"name its pool with ?pool= or X-Pool: {', '.join(sorted(pools))}"


def pools_of(workers: Iterable[Worker]) -> list[str]:
    """The pools of the workers, in order of appearance."""
    return list(dict.fromkeys(worker.pool for worker in workers))


def members(workers: Iterable[Worker], pool: str | None) -> list[Worker]:
    """The workers that a request to the pool may go to; without a name, those of all pools except
    plain HTTP workers."""
    return [w for w in workers if (w.pool == pool if pool is not None else not w.is_plain)]


def ledger_name(pool: str, model: str) -> str:
    """The name of the ledger of a model's workers in a pool: one model has other weights in another
    pool. In the default pool it is the model's own name."""
    if pool == DEFAULT and not _OF_POOL.fullmatch(model):
        return model
    return f"{model} (pool {pool})"


def pool_and_model(ledger: str) -> tuple[str, str]:
    """The pool and the model of a ledger, from its name."""
    match = _OF_POOL.fullmatch(ledger)
    return (match[2], match[1]) if match else (DEFAULT, ledger)
