"""Keys that settings name by a file."""

from __future__ import annotations

from pathlib import Path

from attrs import evolve

from ..errors import Problem, describe
from .model import RouterSettings


def with_admin_key(settings: RouterSettings) -> tuple[RouterSettings, list[Problem]]:
    """The settings with the admin key itself, and what is wrong with its file.

    A step for `load`.
    """
    path = settings.admin_api_key_file
    if path is None:
        return settings, []
    try:
        key = read_key(path)
    except ValueError as error:
        return settings, [Problem("--admin-api-key-file", str(error))]
    return evolve(settings, admin_api_key=key, admin_api_key_file=None), []


def read_key(path: str) -> str:
    """The key that a file holds. Raises ValueError with a sentence if there is none."""
    try:
        key = Path(path).read_text(encoding="utf-8").strip()
    except UnicodeError:
        raise ValueError(f"{path} cannot be read: it is no UTF-8 text") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {describe(error)}") from None
    if not key:
        raise ValueError(f"{path} is empty")
    return key
