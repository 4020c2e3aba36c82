"""Reads the settings once more while the router runs, and applies what can change."""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio
from attrs import define, field

from .. import threads
from ..errors import RouterError, SettingsError, describe
from ..settings import Changes, Live, RouterSettings

logger = logging.getLogger("router.service")


class ReloadRefused(RouterError):
    """The settings are wrong; nothing was changed."""

    default_status = 422
    default_code = "config_invalid"


@define(eq=False)
class Reload:
    """Reads flags and files again with `read`, which raises SettingsError; None: there are none."""

    live: Live
    read: Callable[[], RouterSettings] | None = None
    # Each reads files that a setting names again, and returns the names of the settings whose files
    # have changed. They run in a thread.
    renewals: list[Callable[[], tuple[str, ...]]] = field(init=False, factory=list)
    _turn: trio.Lock = field(init=False, factory=trio.Lock)

    async def __call__(self) -> Changes:
        """Apply what can change at run time. Raises ReloadRefused, and then changes nothing."""
        async with self._turn:
            try:
                wanted = self.live.settings
                if self.read is not None:
                    wanted = await threads.run(self.read)  # the file may be on a slow disk
            except SettingsError as error:
                problems = [str(problem) for problem in error.problems]
                raise ReloadRefused(
                    f"The settings stay as they were: {'; '.join(problems)}",
                    details={"problems": problems},
                ) from None
            except OSError as error:
                raise ReloadRefused(f"The settings stay as they were: {describe(error)}") from None
            changes = self.live.apply(wanted)
            for renewal in self.renewals:
                changes = changes.with_applied(await threads.run(renewal))
        logger.info("settings reloaded: applied: %s", _listed(changes.applied))
        if changes.needs_restart:
            logger.warning("settings that need a restart: %s", _listed(changes.needs_restart))
        return changes

    async def on_signal(self) -> None:
        """Reload for SIGHUP: the log is the only answer."""
        try:
            await self()
        except ReloadRefused as error:
            logger.error("%s", error.message)


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "nothing"
