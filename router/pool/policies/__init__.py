"""Routing policies: which of several free workers gets the next request. One file each."""

from __future__ import annotations

import random
from collections.abc import Callable

from .base import Policy
from .least_request import LeastRequest
from .random_choice import RandomChoice
from .round_robin import RoundRobin

POLICIES: dict[str, Callable[[random.Random], Policy]] = {
    "least-request": lambda _: LeastRequest(),
    "round-robin": lambda _: RoundRobin(),
    "random": RandomChoice,
}


def make(name: str, rng: random.Random | None = None) -> Policy:
    """The policy of that name (a key of POLICIES). Raises KeyError for any other."""
    return POLICIES[name](rng or random.Random())


__all__ = ["POLICIES", "Policy", "make"]
