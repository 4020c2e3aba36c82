"""The settings in force while the router runs: a reload changes those that are declared `live`.

Parts never copy a live setting. They read it from an object of `Live.limits`, which a reload renews
in place, or from an attribute that a function given to `Live.follow` sets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import attrs
from attrs import define, field, frozen

from .fields import fields_of
from .model import RouterSettings

T = TypeVar("T")


@frozen
class Changes:
    """What other settings mean for a running router: the names of settings."""

    applied: tuple[str, ...]
    unchanged: tuple[str, ...]
    needs_restart: tuple[str, ...]

    def with_applied(self, names: tuple[str, ...]) -> Changes:
        """The same, with these settings applied, too."""
        rest = tuple(name for name in self.unchanged if name not in names)
        return Changes((*self.applied, *names), rest, self.needs_restart)


@define(eq=False)
class Live:
    """The settings in force, and how the parts of the router hear of changes."""

    settings: RouterSettings
    followers: list[Callable[[RouterSettings], None]] = field(init=False, factory=list)

    def follow(self, apply: Callable[[RouterSettings], None]) -> None:
        """Call `apply` with the settings now and after each change. It must not fail."""
        apply(self.settings)
        self.followers.append(apply)

    def limits(self, make: Callable[[RouterSettings], T]) -> T:
        """The object that `make` makes of the settings; each change renews its fields."""
        made = make(self.settings)

        def renew(settings: RouterSettings) -> None:
            renewed = make(settings)
            for each in attrs.fields(type(made)):  # type: ignore[arg-type]
                setattr(made, each.name, getattr(renewed, each.name))

        self.followers.append(renew)
        return made

    def apply(self, wanted: RouterSettings) -> Changes:
        """Take over the live settings of `wanted`, and say what else differs."""
        applied: dict[str, object] = {}
        unchanged, needs_restart = [], []
        for name, each in fields_of(RouterSettings).items():
            value = getattr(wanted, name)
            if value == getattr(self.settings, name):
                unchanged.append(name)
            elif each.live:
                applied[name] = value
            else:
                needs_restart.append(name)
        if applied:
            self.settings = attrs.evolve(self.settings, **applied)  # type: ignore[arg-type]
            for follower in self.followers:
                follower(self.settings)
        return Changes(tuple(applied), tuple(unchanged), tuple(needs_restart))
