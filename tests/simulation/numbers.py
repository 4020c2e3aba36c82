"""Versions that trainers choose, and that clients ask for."""

from __future__ import annotations

from attrs import field, frozen

from tests.simulation.deployment import World
from tests.simulation.http import Answer
from tests.simulation.universe import Life, Wrong, pick

UNKNOWN, PASSED = "weight_version_unknown", "weight_version_passed"
REFUSED = (UNKNOWN, PASSED)


@frozen
class Wish:
    """Which versions will do for a request. `floor`: none below this one; `latest`: the newest that
    anybody knew of when it was asked."""

    headers: dict[str, str] = field(factory=dict)
    floor: int = 0
    exact: int | None = None
    latest: int = 0


def chosen(world: World, who: str, label: str) -> int | str | None:
    """What a trainer calls the version of its next change."""
    dice = world.dice(f"{who} number")
    if dice.random() >= world.theme.numbers:
        return None
    last = max(world.truth.versions, default=0)
    how = pick(dice, {"next": 3, "jump": 3, "not greater": 2, "digits": 2, "text": 2})
    match how:
        case "next":
            return last + 1
        case "jump":
            return last + dice.choice([2, 10, 1000])
        case "not greater":
            return max(0, last - dice.choice([0, 0, 1, 5]))
        case "digits":
            return str(last + dice.choice([-1, 0, 1, 1, 7]) if last else 1)
    return label


def wished(world: World, who: str) -> Wish:
    dice = world.dice(f"{who} wish")
    if dice.random() >= world.theme.bounds:
        return Wish()
    versions = world.truth.versions
    latest = max(versions, default=0)
    how = pick(dice, {"least": 3, "exact": 3, "lag": 3, "label": 2, "future": 1})
    match how:
        case "exact":
            recent = sorted({0, *versions})[-3:]
            exact = dice.choice([latest, *recent])
            return Wish({"x-exact-weight-version": str(exact)}, exact=exact, latest=latest)
        case "lag":
            lag = dice.choice([0, 0, 1, 10])
            floor = sorted({0, *versions})[-lag - 1 :][0]  # by issue
            return Wish({"x-max-weight-lag": str(lag)}, floor=floor, latest=latest)
        case "label" if latest:
            label = versions[latest].label
            return Wish({"x-min-weight-version": label}, floor=latest, latest=latest)
        case "future":
            least = latest + dice.choice([1, 1, 5000])
            return Wish({"x-min-weight-version": str(least)}, floor=least, latest=latest)
    return Wish({"x-min-weight-version": str(latest)}, floor=latest, latest=latest)


async def check_refusal(
    world: World, request: str, wish: Wish, answer: Answer, life: Life | None
) -> None:
    """A version is refused only if it was never issued, or is over. Raises Wrong."""
    wanted = wish.floor if wish.exact is None else wish.exact
    error = answer.json()
    if error["retryable"] is not (answer.code == UNKNOWN):
        raise Wrong(f"{request} was refused: {error}")
    if answer.code == UNKNOWN:
        last = error["weight_version"]
        if wanted <= wish.latest or wanted <= last:
            raise Wrong(f"{request} wants {wanted}; {wish.latest} was issued before: {error}")
        return
    if wish.exact is None:
        raise Wrong(f"{request} wants no version in particular: {error}")
    shown = await world.ask("a refused client", "GET", "/weights")
    if shown is not None and world.router.life is life:
        newest = max(ledger["latest_issued"] for ledger in shown.json()["models"])
        if newest <= wanted:
            raise Wrong(f"{request} wants {wanted}, and no later version was issued: {error}")
