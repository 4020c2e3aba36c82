"""Is it still the same process? What tells one process of a worker from the next.

No endpoint of a worker says. Whoever knows more (the launcher, by pid and start time) is asked
first; then the worker itself, for jobs and images that it made: these are in the memory of its
process and nowhere else, so one that it still knows is proof.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from enum import StrEnum
from typing import Any, TypeAlias

from attrs import define, field

from ..pool.assets import AssetKind, AssetMap, Made
from ..pool.worker import Worker
from ..text import segment
from .client import ControlClient, Unreachable

_MOST_ASKED = 3
_PATIENCE = 5.0  # seconds for an answer; reads of jobs and images queue behind nothing

# What a worker says of an image that is in its table, though there is no file to give: none was
# kept, it is not written yet, or it is stored elsewhere.
_KNOWS_IMAGE = ("Image was not persisted", "Image is still being", "Image has been uploaded")


class Verdict(StrEnum):
    """What is known of the process behind a URL, against the one that was there before."""

    SAME = "same"
    OTHER = "other"
    UNKNOWN = "unknown"  # nothing tells
    SILENT = "silent"  # there was no answer: ask again


Prover: TypeAlias = Callable[[Worker], Awaitable[Verdict]]
"""Says whether the process is the one of the worker's present incarnation; must not raise."""


def trusts_absence(absence: float | None, trust_downtime: float) -> bool:
    """Whether restored workers are taken to be the same without proof (`--trust-downtime`).

    `absence`: seconds for which no router ran; None if that is not known, and then they are not.
    """
    return absence is not None and 0 <= absence < trust_downtime


@define(eq=False)
class Witness:
    """Finds out whether a worker's process is still the one that was known."""

    assets: AssetMap
    client: ControlClient
    provers: list[Prover] = field(factory=list)  # asked in this order, before the worker itself

    def recall(self, worker: Worker) -> tuple[Made, ...]:
        """What the known process has made, as far as it can testify.

        To be called in the moment of the suspicion: what is made later may be of another process.
        """
        return self.assets.latest(worker)

    async def judge(self, worker: Worker, recalled: Iterable[Made]) -> Verdict:
        """Whether the process is the one that made these."""
        silent = False
        for prove in self.provers:
            verdict = await prove(worker)
            if verdict is Verdict.SAME or verdict is Verdict.OTHER:
                return verdict
            silent = silent or verdict is Verdict.SILENT
        verdict = await self._ask(worker, recalled)
        return Verdict.SILENT if silent and verdict is Verdict.UNKNOWN else verdict

    async def _ask(self, worker: Worker, recalled: Iterable[Made]) -> Verdict:
        asked = denied = 0
        for made in recalled:
            if asked == _MOST_ASKED:
                break
            if not self.assets.has(made):
                continue  # deleted since
            asked += 1
            try:
                knows = await self._knows(worker, made)
            except Unreachable:
                return Verdict.SILENT
            if knows:
                return Verdict.SAME
            denied += knows is False
        return Verdict.OTHER if asked and denied == asked else Verdict.UNKNOWN

    async def _knows(self, worker: Worker, made: Made) -> bool | None:
        """Whether the worker knows what it made; None if its answer does not tell. Raises
        Unreachable."""
        path = f"/v1/{made.owner.kind}/{segment(made.asset_id)}"
        if made.owner.kind is AssetKind.IMAGE:
            path += "/content"
            # Megabytes would follow.
            status = await self.client.status(worker.url, path, within=_PATIENCE)
            if status in (200, 206):
                return True
        answer = await self.client.get(worker.url, path, within=_PATIENCE)
        content: Any = answer.json()
        said = content if isinstance(content, dict) else {}
        if made.owner.kind is AssetKind.IMAGE:
            detail = said.get("detail")
            if answer.status in (400, 404) and str(detail).startswith(_KNOWS_IMAGE):
                return True
        elif answer.status == 200:
            # Something in between may answer anything with 200.
            return True if said.get("id") == made.asset_id else None
        return False if answer.status == 404 else None
