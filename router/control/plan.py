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
    CALL = "call"  # send it the call of the operation that has it
    LEAVE = "leave"  # tell the operation that has it that it cannot take part any more
    CATCH_UP = "catch up"  # have the pending changes of its model made
    REPLAY = "replay"  # send it the weight changes that it lacks
    EMPTY = "empty"  # wait until nothing is under way there, answers to clients included
    REMOVE = "remove"  # take it out of the pool


class Stage(StrEnum):
    """How far an operation is with a worker that it has."""

    DRAINING = "draining"
    HELD = "held"  # idle, and there is nothing to be sent
    DUE = "due"  # idle, and there is a call to be sent
    OVER = "over"  # its outcome is known


@frozen
class Known:
    """What is known of a worker, and wanted of it. `memory` is both: `falling_asleep` and `waking`
    are wishes that are yet to be met."""

    incarnation: int
    healthy: bool
    reachable: bool  # healthy, and not quarantined: calls may be sent to it
    certain: bool  # its process is the known one, and has said what it can do
    idle: bool
    memory: Memory
    doubted: bool  # it counts as asleep, but its process has not said so
    lacking: bool  # a replay would bring it up to its ledger
    awaiting: bool  # a pending change comes before that
    leaving: bool = False  # it is to be removed once its work has ended
    drained: bool = False  # which it has
    claim: object | None = None  # of the operation that has the worker
    stage: Stage | None = None
    left: bool = False  # what that operation wanted of it cannot be done any more


def next_action(known: Known) -> Action:
    """What to do now. Memory comes first: what sleeps, or is to sleep, has no weights to change."""
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
    if not known.certain or known.leaving:  # it will not serve any more
        return Action.REST
    if known.awaiting:
        return Action.CATCH_UP
    if known.lacking:
        return Action.REPLAY if ready else Action.DRAIN
    return Action.REST


def goes_on(action: Action, begun: Known, now: Known) -> bool:
    """Whether an action that was begun is worth going on with."""
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
