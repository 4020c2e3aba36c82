"""Routing policies: which of several free workers gets the next request. One file each."""

from __future__ import annotations

import random
from collections.abc import Callable

from ..cost import Speeds
from .base import Policy
from .least_request import LeastRequest
from .least_work import LeastWork
from .power_of_two import PowerOfTwo
from .random_choice import RandomChoice
from .round_robin import RoundRobin

POLICIES: dict[str, Callable[[random.Random, Speeds], Policy]] = {
    "least-request": lambda _, __: LeastRequest(),
    "round-robin": lambda _, __: RoundRobin(),
    "random": lambda rng, _: RandomChoice(rng),
    "power-of-two": lambda rng, _: PowerOfTwo(rng),
    "least-work": lambda _, speeds: LeastWork(speeds),
}


def make(name: str, speeds: Speeds, rng: random.Random | None = None) -> Policy:
    """The policy of that name (a key of POLICIES). Raises KeyError for any other."""
    return POLICIES[name](rng or random.Random(), speeds)


__all__ = ["POLICIES", "Policy", "make"]
