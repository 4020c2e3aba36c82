"""The launchers of a router: those of its settings, or those of the file for --launcher-config."""

from __future__ import annotations

from attrs import evolve, fields

from ..errors import Problem
from .launcher import NO_LAUNCHER, LauncherFile, LauncherSettings
from .model import RouterSettings
from .structure import at, key_name, try_structure
from .yamlfile import read_yaml


def with_launchers(settings: RouterSettings) -> tuple[RouterSettings, list[Problem]]:
    """The settings with all launchers in `launchers`, and what is wrong with their file.

    A step for `load`. Reads the file if one is named.
    """
    problems: list[Problem] = []
    first, rest = settings.launcher, settings.launchers
    if settings.launcher_config is not None:
        data, problems = read_yaml(settings.launcher_config)
        made = None
        if data or not problems:  # else the file could not be read, and says nothing
            made, wrong = try_structure(data, LauncherFile)
            if _is_one_launcher(data):
                wrong = [NO_LAUNCHER]  # rather than that each of its keys is unknown
            problems += [at(settings.launcher_config, problem) for problem in wrong]
        first, rest = (made.launcher, made.launchers) if made else (None, ())
    launchers = rest if first is None else (first, *rest)
    return evolve(settings, launcher=None, launchers=launchers), problems


def _is_one_launcher(data: object) -> bool:
    """Whether these are the settings of one launcher, without the key above them."""
    keys = {key_name(key) for key in data} if isinstance(data, dict) else set()
    names = {attribute.name for attribute in fields(LauncherSettings)}
    return bool(keys & names) and not keys & {"launcher", "launchers"}
