"""Which versions of the weights a request accepts."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ..errors import BadRequest, Conflict


class NeverIssued(Conflict):
    """The requested weight version was never issued, so waiting for it would not end."""

    default_code = "weight_version_unknown"

    def __init__(self, version: int | str, latest: int) -> None:
        what = f"Weight version {version}" if isinstance(version, int) else f"A version {version!r}"
        super().__init__(
            f"{what} was never issued; the latest is {latest}",
            details={"weight_version": latest, "retryable": True},
        )


class Passed(Conflict):
    """No worker has the requested weight version, and none will have it again."""

    default_code = "weight_version_passed"

    def __init__(self, bounds: Bounds) -> None:
        super().__init__(
            f"No fitting worker has weights of {bounds}, and none will have them again",
            details={"retryable": False},
        )


class Asked(NamedTuple):
    """What a request asks of the weights, in its own words. Each version is a number or a label;
    all of them must be met."""

    oldest: tuple[int | str, ...] = ()
    exact: tuple[int | str, ...] = ()
    lag: int | None = None

    def bounds(self, number: Callable[[str], int | None], latest: int) -> Bounds | None:
        """The bounds in numbers; None if any weights will do. `number`: the newest version with a
        label; `latest`: the last number issued. Raises NeverIssued, BadRequest."""
        oldest, exact = (
            {_issued(version, number, latest) for version in versions}
            for versions in (self.oldest, self.exact)
        )
        bounds = Bounds(max(oldest, default=0), max(exact, default=None), self.lag)
        if len(exact) > 1 or (bounds.exact is not None and bounds.exact < bounds.oldest):
            raise BadRequest(
                "The request asks for weight versions that contradict one another: "
                f"{' and '.join(map(str, sorted(exact)))} exactly, {bounds.oldest} at least",
                code="invalid_header",
            )
        return None if bounds == Bounds() else bounds


def _issued(version: int | str, number: Callable[[str], int | None], latest: int) -> int:
    found = version if isinstance(version, int) else number(version)
    if found is None or found > latest:
        raise NeverIssued(version, latest)
    return found


class Bounds(NamedTuple):
    """The weights that a request accepts. Numbers are those of its model.

    `oldest`: this version or a later one. `exact`: only this version. `lag`: at most so many
    versions were issued after the worker's.
    """

    oldest: int = 0
    exact: int | None = None
    lag: int | None = None

    def met(self, version: int, lag: int | None) -> bool:
        """Whether a worker with this version may serve now. `lag`: how many were issued since;
        None: too many, or not known."""
        return (
            version >= self.oldest
            and self.exact in (None, version)
            and (self.lag is None or (lag is not None and lag <= self.lag))
        )

    def passed(self, newest: int) -> bool:
        """Whether a worker that is brought to the newest version or a later one is of no use."""
        return self.exact is not None and self.exact < newest

    def __str__(self) -> str:
        if self.exact is not None:
            return f"version {self.exact}"
        least = f"version {self.oldest} or later" if self.oldest else "any version"
        return least if self.lag is None else f"{least}, at most {self.lag} behind the newest"
