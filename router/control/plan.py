"""The next action for a worker, from the known and the wanted state. Pure."""

from __future__ import annotations

from enum import StrEnum

from attrs import evolve, frozen

from ..pool.worker import Memory


class Action(StrEnum):
    """The actions of a worker's agent."""

    REST = "rest"  # nothing to do, or nothing possible
    DRAIN = "drain"  # wait until the worker is idle
    SLEEP = "sleep"  # have the worker give its memory back
    WAKE = "wake"  # have the worker take its memory again
    CALL = "call"  # send the call of the operation that holds the worker
    LEAVE = "leave"  # tell the operation that holds the worker that the worker drops out
    CATCH_UP = "catch up"  # make the pending changes of the worker's model
    REPLAY = "replay"  # send the weight changes that the worker lacks
    EMPTY = "empty"  # wait until no work is left, answers to clients included
    REMOVE = "remove"  # remove the worker from the pool


class Stage(StrEnum):
    """How far an operation has come with a worker that it holds."""

    DRAINING = "draining"
    HELD = "held"  # idle, without a call to send
    DUE = "due"  # idle, with a call to send
    OVER = "over"  # the outcome is known


@frozen
class Known:
    """The known and the wanted state of a worker. `memory` is both: `falling_asleep` and `waking`
    are wishes that are not met yet."""

    incarnation: int
    healthy: bool
    reachable: bool  # healthy, and not quarantined: calls may be sent
    certain: bool  # its process is the known one, and has told its capabilities
    idle: bool
    memory: Memory
    doubted: bool  # counts as asleep, but its process has not said so
    lacking: bool  # a replay would bring the worker to its ledger's version
    awaiting: bool  # a pending change comes before the replay
    leaving: bool = False  # to be removed once its work has ended
    drained: bool = False  # its work has ended
    claim: object | None = None  # of the operation that holds the worker
    stage: Stage | None = None
    left: bool = False  # the operation's wish can no longer be met


def next_action(known: Known) -> Action:
    """The action to do now. Memory comes first: a sleeping worker has no weights to change."""
    stage = known.stage
    if stage is Stage.OVER:
        return Action.REST
    if stage is not None and known.left:
        return Action.LEAVE
    if known.leaving and known.drained:
        return Action.REMOVE
    action = _next_while_it_stays(known)
    return Action.EMPTY if known.leaving and action is Action.REST else action


def _next_while_it_stays(known: Known) -> Action:
    stage = known.stage
    if not known.reachable:
        return Action.REST
    ready = known.idle if stage is None else stage is not Stage.DRAINING
    if known.memory is Memory.WAKING:
        return Action.WAKE if ready else Action.DRAIN
    if known.memory is Memory.FALLING_ASLEEP or known.doubted:
        return Action.SLEEP if ready else Action.DRAIN
    if known.memory is Memory.ASLEEP or stage is Stage.HELD:
        return Action.REST
    if stage is not None:
        return Action.CALL if ready else Action.DRAIN
    if not known.certain or known.leaving:  # the worker will not serve again
        return Action.REST
    if known.awaiting:
        return Action.CATCH_UP
    if known.lacking:
        return Action.REPLAY if ready else Action.DRAIN
    return Action.REST


def goes_on(action: Action, begun: Known, now: Known) -> bool:
    """Whether a running action is worth continuing."""
    if now.incarnation != begun.incarnation or now.claim is not begun.claim:
        return False
    match action:
        case Action.DRAIN | Action.EMPTY:
            return next_action(evolve(now, idle=False, drained=False)) is action
        case Action.SLEEP | Action.WAKE:
            return now.healthy
        case Action.CALL:
            return not now.left
        case Action.CATCH_UP:
            return next_action(now) is action
        case Action.REPLAY:  # the next call might reach another process, or cross a sleep
            well = now.reachable and now.certain and now.memory is Memory.AWAKE
            return well and not now.leaving
    return True
