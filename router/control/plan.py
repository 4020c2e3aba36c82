"""What is to be done at a worker next, by what is known and wanted of it. Pure."""

from __future__ import annotations

from enum import StrEnum

from attrs import evolve, frozen

from ..pool.worker import Memory


class Action(StrEnum):
    """What the agent of a worker can do."""

    REST = "rest"  # nothing is to be done, or nothing can be
    DRAIN = "drain"  # wait until the worker is idle
    SLEEP = "sleep"  # have it give its memory back
    WAKE = "wake"  # have it take its memory again
    REPLAY = "replay"  # send it the weight changes that it lacks


@frozen
class Known:
    """What is known of a worker, and wanted of it. `memory` is both: `falling_asleep` and `waking`
    are wishes that are yet to be met."""

    incarnation: int
    reachable: bool  # healthy, and not quarantined: calls may be sent to it
    certain: bool  # its process is the known one, and has said what it can do
    idle: bool
    memory: Memory
    doubted: bool  # it counts as asleep, but its process has not said so
    claimed: bool  # a request puts it to sleep or wakes it just now
    engaged: bool  # an operation has the worker
    lacking: bool  # a replay would bring it up to its ledger
    awaiting: bool  # and a pending change comes before that

    @property
    def may_replay(self) -> bool:
        """Whether nothing but its own state speaks against calls that change its weights."""
        fit = self.reachable and self.certain and not self.engaged
        return fit and self.memory is Memory.AWAKE


def next_action(known: Known) -> Action:
    """What to do now. Memory comes first: what sleeps, or is to sleep, has no weights to change."""
    if not known.reachable:
        return Action.REST
    if known.memory is not Memory.AWAKE:
        if known.claimed or (known.memory is Memory.ASLEEP and not known.doubted):
            return Action.REST
        if known.memory is Memory.WAKING:
            return Action.WAKE
        return Action.SLEEP if known.idle else Action.DRAIN
    if known.lacking and not known.awaiting and known.may_replay:
        return Action.REPLAY if known.idle else Action.DRAIN
    return Action.REST


def goes_on(action: Action, begun: Known, now: Known) -> bool:
    """Whether an action that was begun is worth going on with."""
    if now.incarnation != begun.incarnation:
        return False
    match action:
        case Action.DRAIN:
            return next_action(evolve(now, idle=False)) is Action.DRAIN
        case Action.REPLAY:  # the next call might reach another process, or cross a change
            return now.may_replay
    return True  # the call of a sleep or wake has bounds of its own
