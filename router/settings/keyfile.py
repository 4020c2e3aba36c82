"""Keys and certificates that settings name by a file."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from attrs import evolve

from ..errors import Problem, describe
from .model import RouterSettings


def with_credentials(settings: RouterSettings) -> tuple[RouterSettings, list[Problem]]:
    """The settings with the keys themselves, and what is wrong with the files of keys and
    certificates.

    A step for `load`.
    """
    problems: list[Problem] = []
    found: dict[str, Any] = {}
    for name in ("admin_api_key", "worker_api_key"):
        path = getattr(settings, f"{name}_file")
        if path is None:
            continue
        try:
            key = read_key(path)
        except ValueError as error:
            problems.append(Problem(_flag(f"{name}_file"), str(error)))
        else:
            found |= {name: key, f"{name}_file": None}
    settings = evolve(settings, **found)
    key = settings.worker_api_key or ""
    if not (key.isascii() and key.isprintable() and " " not in key):
        problems.append(Problem("--worker-api-key", "may hold neither spaces nor other than ASCII"))
    if settings.worker_ca is not None:
        try:
            ssl.create_default_context(cafile=settings.worker_ca)
        except OSError as error:  # ssl.SSLError is one
            why = "it holds no certificate" if isinstance(error, ssl.SSLError) else describe(error)
            told = f"{settings.worker_ca} cannot be read: {why}"
            problems.append(Problem("--worker-ca", told))
    return settings, problems


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


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
