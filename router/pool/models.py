"""The models that workers serve, and what to say to a request that names none of them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from ..errors import BadRequest, NotFound
from .worker import Worker

# Longer names and further models are not compared: the time for it grows with both.
_LONGEST_COMPARED, _MOST_COMPARED = 200, 200


def models_of(workers: Iterable[Worker]) -> list[str]:
    """The models that the workers serve, one name for each, in order of appearance.

    A worker may list its model under several names; the first counts.
    """
    names = dict.fromkeys(model_of(worker) for worker in workers)
    return [name for name in names if name is not None]


def model_of(worker: Worker) -> str | None:
    """The name under which the worker serves its model, if that is known."""
    can = worker.capabilities
    return can.models[0] if can and can.models else None


class AmbiguousModel(BadRequest):
    """Several models fit and the request does not say which one it means."""

    default_code = "ambiguous_model"


class UnknownModel(NotFound):
    """No worker serves the model that the request names."""

    default_code = "unknown_model"

    def __init__(self, model: str, pool: Iterable[Worker]) -> None:
        pool = tuple(pool)
        names = [name for w in pool if w.capabilities for name in w.capabilities.models]
        near = nearest(model, names)
        hint = f"; did you mean {near!r}?" if near is not None else ""
        super().__init__(
            f"No worker serves the model {_short(model)!r}{hint}",
            details={"models": models_of(pool), "nearest": near},
        )


def ambiguous(pool: Iterable[Worker]) -> AmbiguousModel:
    """The refusal of a request that names no model, of workers that serve several."""
    models = models_of(pool)
    shown = ", ".join(map(_short, models[:10])) + (", ..." if len(models) > 10 else "")
    return AmbiguousModel(
        f"Several models fit ({shown}): name one as `model` in the body, or with ?model=",
        details={"models": models},
    )


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one of the names that is most like this one: in other letters, or nearly."""
    some = list(dict.fromkeys(names))
    for one in some:
        if one.casefold() == name.casefold():
            return one
    if len(name) > _LONGEST_COMPARED:
        return None
    by_folded = {
        one.casefold(): one for one in some[:_MOST_COMPARED] if len(one) <= _LONGEST_COMPARED
    }
    close = difflib.get_close_matches(name.casefold(), by_folded, n=1)
    return by_folded[close[0]] if close else None


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_COMPARED else f"{name[:_LONGEST_COMPARED]}..."
