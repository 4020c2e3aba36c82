"""What there is of each in one round. Some rounds are of one mind: what collides rarely in a mix of
everything does so often where there is little else.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from attrs import evolve, field, frozen

# Of breakers, and of operators.
_BREAKS = ("restart", "freeze", "part", "cut", "bad_network", "ill")
_OPERATIONS = ("come_and_go", "retire_the_dead", "quarantine", "nap", "sync", "collide")

MIXED = "mixed"


@frozen
class Theme:
    """What there is of each in one round."""

    name: str = MIXED
    parts: int = 1  # with a calm after each, in which what was left undone shows
    clients: int = 4
    trainers: int = 1
    breakers: int = 2
    operators: int = 1
    filmers: int = 1
    steps: int = 300  # of the longest image
    video: int = 80  # and video
    burst: int = 0  # videos for each worker, all at a time
    flood: int = 0  # the same, and then one of the workers freezes
    kills: bool = True  # of the router
    hasty: bool = False  # one soon after the other, while it writes or has just answered
    disk: bool = True  # fails
    full: bool = False  # it is only ever full, for a moment, again and again
    begun: float = 1.0  # the share of changes of many calls
    tensors: float = 1.0  # and of tensors
    strays: int = 0  # who put engines to sleep past the router
    rollers: int = 0  # who ask for groups of samples, most with keys
    cancellers: int = 0
    insisters: int = 0  # who submit videos with keys
    runs: int = 0  # 1: one run of the trainer follows the other
    pushers: int = 0  # trainers that send each worker its own part of the weights
    gatherers: int = 0  # trainers whose workers all take part in each change
    pools: int = 0  # 1: there are two more
    adapters: int = 0  # 1: there is a pool whose trainer sets LoRAs
    rolling: bool = False  # some changes are made by turns
    wholes: float = 0.0  # the share of changes with tensors that are said to be full
    numbers: float = 0.0  # the share of changes whose version the trainer chooses
    bounds: float = 0.0  # and of images for which only some versions will do
    aim: float = 0.0  # the share of deeds that wait for the worst moment
    illness: str | None = None  # that of all who are ill
    pace: float = 1.0  # how much longer clients and trainers pause
    sound: bool = False  # nothing breaks, so nothing may fail
    deeds: Mapping[str, float] = field(factory=dict)  # of breakers and operators, by name


def drawn(dice: random.Random, name: str | None = None) -> Theme:
    """The theme of a round, or the one of this name, with all that it leaves open."""
    theme = Theme(
        clients=dice.choice([2, 4, 8]),
        trainers=dice.choice([0, 1, 1, 1, 2]),
        breakers=dice.choice([0, 0, 1, 2, 3]),
        operators=dice.choice([0, 1, 2, 2, 2]),
        filmers=dice.choice([0, 1, 1, 3]),
        steps=dice.choice([50, 300, 300]),
        video=dice.choice([20, 80, 600, 1500]),
        burst=dice.choice([0, 0, 0, 0, 95]),
        kills=dice.random() < 0.6,
        disk=dice.random() < 0.6,
        begun=dice.choice([0.0, 1.0, 8.0, 8.0]),
        tensors=dice.choice([0.0, 1.0, 8.0]),
        aim=dice.choice([0.0, 0.5, 1.0, 1.0]),
        deeds={deed: dice.choice([0.0, 1.0, 1.0, 4.0]) for deed in (*_BREAKS, *_OPERATIONS)},
        numbers=dice.choice([0.0, 0.5, 0.9]),
        wholes=dice.choice([0.0, 0.5, 1.0]),
        bounds=dice.choice([0.0, 0.3]),
    )
    any_name = dice.choice(list(THEMES)) if dice.random() < 0.6 else MIXED
    name = name or any_name
    if name == MIXED:
        theme = evolve(
            theme,
            strays=dice.choice([0, 0, 1]),
            rollers=dice.choice([0, 0, 2, 4]),
            cancellers=dice.choice([0, 0, 1]),
            insisters=dice.choice([0, 0, 1]),
        )
    return evolve(theme, name=name, **THEMES.get(name, {}))


def _only(**deeds: float) -> dict[str, float]:
    return dict.fromkeys((*_BREAKS, *_OPERATIONS), 0.0) | deeds


# Short images, and no videos.
_IMAGES = {"filmers": 0, "steps": 50, "burst": 0}

THEMES: dict[str, dict[str, Any]] = {
    # Several operations and changes at the same time, at well and quick workers.
    "collisions": {
        **_IMAGES,
        "parts": 6,
        "trainers": 1,
        "breakers": 0,
        "operators": 2,
        "kills": False,
        "disk": False,
        "begun": 1.0,
        "tensors": 1.0,
        "aim": 1.0,
        "deeds": _only(come_and_go=2, collide=8, nap=1),
    },
    # All sleep and are woken, and changes come without a pause.
    "naps": {
        **_IMAGES,
        "parts": 3,
        "trainers": 3,
        "breakers": 0,
        "operators": 1,
        "kills": False,
        "disk": False,
        "begun": 1.0,
        "tensors": 0.0,
        "aim": 0.0,
        "pace": 0.3,
        "deeds": _only(nap=8),
    },
    # The same, and the disk is full in bad moments.
    "full naps": {
        **_IMAGES,
        "trainers": 2,
        "breakers": 0,
        "operators": 1,
        "kills": False,
        "disk": True,
        "full": True,
        "begun": 0.0,
        "tensors": 0.0,
        "aim": 1.0,
        "deeds": _only(nap=8),
    },
    # Workers with long work are in quarantine when all are put to sleep, and released after that.
    "long naps": {
        "clients": 2,
        "trainers": 0,
        "breakers": 0,
        "operators": 2,
        "filmers": 3,
        "video": 1500,
        "burst": 0,
        "kills": False,
        "disk": False,
        "aim": 0.0,
        "deeds": _only(nap=4, quarantine=6),
    },
    # The disk is full now and then, transactions begin, and the router is killed.
    "transactions": {
        **_IMAGES,
        "clients": 1,
        "trainers": 1,
        "breakers": 0,
        "operators": 0,
        "kills": True,
        "disk": True,
        "full": True,
        "begun": 16.0,
        "tensors": 0.0,
        "aim": 1.0,
    },
    # The router is killed while it writes, again and again, and power is lost.
    "losses": {
        "clients": 2,
        "trainers": 2,
        "breakers": 0,
        "operators": 1,
        "steps": 50,
        "video": 20,
        "burst": 0,
        "kills": True,
        "hasty": True,
        "disk": False,
        "aim": 0.0,
        "pace": 0.3,
    },
    # Processes of workers take one another's place, often sooner than a probe would see.
    "restarts": {
        "clients": 8,
        "trainers": 1,
        "breakers": 3,
        "operators": 0,
        "filmers": 0,
        "steps": 50,
        "kills": False,
        "disk": False,
        "begun": 1.0,
        "aim": 0.5,
        "deeds": _only(restart=1),
    },
    # Workers with jobs die, and are removed.
    "removals": {
        "parts": 2,
        "operators": 2,
        "filmers": 3,
        "video": 600,
        "burst": 0,
        "kills": False,
        "deeds": _only(retire_the_dead=4, come_and_go=1, restart=1),
    },
    # Busy workers answer late.
    "late": {
        "breakers": 2,
        "operators": 0,
        "filmers": 3,
        "video": 600,
        "burst": 0,
        "kills": False,
        "disk": False,
        "aim": 0.0,
        "illness": "slow_health",
        "deeds": _only(ill=1),
    },
    # Changes are made by turns, while workers come, go, sleep and are replaced.
    "rolls": {
        **_IMAGES,
        "clients": 8,
        "trainers": 2,
        "breakers": 1,
        "operators": 1,
        "begun": 0.0,
        "tensors": 1.0,
        "rolling": True,
        "pace": 0.3,
    },
    # Nothing but tensors, some of them full, while workers are replaced.
    "tensors": {
        **_IMAGES,
        "trainers": 1,
        "breakers": 1,
        "operators": 0,
        "kills": False,
        "disk": False,
        "begun": 0.0,
        "tensors": 60.0,
        "wholes": 0.6,
        "aim": 0.5,
        "pace": 0.5,
        "deeds": _only(restart=1),
    },
    # Each worker is sent its own part of the weights, while workers and the router die.
    "parts": {
        **_IMAGES,
        "parts": 2,
        "clients": 3,
        "trainers": 1,
        "breakers": 1,
        "operators": 0,
        "disk": False,
        "begun": 1.0,
        "tensors": 0.0,
        "pushers": 1,
        "aim": 0.5,
        "pace": 0.5,
        "deeds": _only(restart=2, ill=1),
        "illness": "update",
    },
    # Members of collectives die, freeze, refuse, and are removed; the router dies too.
    "collectives": {
        **_IMAGES,
        "parts": 2,
        "clients": 3,
        "trainers": 0,
        "breakers": 1,
        "operators": 1,
        "disk": False,
        "gatherers": 1,
        "aim": 0.7,
        "pace": 0.5,
        "deeds": _only(restart=4, freeze=1, part=1, ill=1, come_and_go=2, quarantine=2),
        "illness": "update",
    },
    # New runs of the trainer begin, by a call or at a start, while weights are changed.
    "runs": {
        **_IMAGES,
        "clients": 4,
        "trainers": 2,
        "breakers": 1,
        "operators": 0,
        "kills": True,
        "disk": False,
        "begun": 2.0,
        "tensors": 1.0,
        "runs": 1,
        "bounds": 0.0,
        "aim": 0.5,
        "pace": 0.5,
        "deeds": _only(restart=2, part=1),
    },
    # Trainers count for themselves, and clients mind the versions.
    "numbers": {
        **_IMAGES,
        "clients": 8,
        "trainers": 2,
        "begun": 2.0,
        "tensors": 1.0,
        "rolling": True,
        "numbers": 0.9,
        "bounds": 0.5,
        "pace": 0.3,
    },
    # Engines are put to sleep and woken past the router, which is told or not.
    "strays": {
        **_IMAGES,
        "parts": 3,
        "clients": 4,
        "trainers": 1,
        "breakers": 0,
        "operators": 0,
        "kills": False,
        "disk": False,
        "strays": 2,
        "rollers": 3,
        "pace": 0.5,
    },
    # Clients with keys that try again blindly, while workers and the router die.
    "keys": {
        "clients": 0,
        "trainers": 1,
        "breakers": 1,
        "operators": 1,
        "filmers": 0,
        "burst": 0,
        "begun": 0.0,
        "kills": True,
        "rollers": 6,
        "insisters": 2,
    },
    # Several pools and models, and the router dies.
    "pools": {
        "parts": 2,
        "clients": 3,
        "trainers": 1,
        "operators": 0,
        "filmers": 1,
        "steps": 50,
        "video": 20,
        "burst": 0,
        "rollers": 1,
        "pools": 1,
    },
    # A pool gets LoRAs and weights, while its workers and the router die.
    "loras": {
        **_IMAGES,
        "clients": 1,
        "trainers": 0,
        "breakers": 0,
        "operators": 0,
        "pace": 5,
        "adapters": 1,
    },
    # What waits is cancelled, groups are split, and workers are few.
    "groups": {
        "parts": 2,
        "clients": 1,
        "trainers": 1,
        "breakers": 1,
        "operators": 0,
        "filmers": 0,
        "burst": 0,
        "kills": False,
        "disk": False,
        "rollers": 4,
        "cancellers": 2,
        "pace": 0.5,
    },
    # Very many short jobs, of which those of one worker do not end.
    "floods": {
        "clients": 2,
        "trainers": 0,
        "breakers": 0,
        "operators": 0,
        "filmers": 2,
        "steps": 50,
        "video": 20,
        "burst": 0,
        "flood": 150,
        "kills": False,
        "disk": False,
    },
}

# A day on which all goes well.
ORDINARY = Theme("ordinary", 1, 1, 1, 0, 0, 1, kills=False, disk=False, pace=20, sound=True)
