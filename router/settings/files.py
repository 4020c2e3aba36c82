"""Settings that name files: keys, certificates and launchers. Steps for `load`."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from attrs import evolve

from ..errors import Problem, describe
from .fields import fields_of
from .kinds import Unfit, at, noting
from .launcher import NO_LAUNCHER, LauncherFile, LauncherSettings
from .model import RouterSettings
from .sections import field_name
from .tls import load_certificate


def with_launchers(settings: RouterSettings) -> tuple[RouterSettings, list[Problem]]:
    """The settings with all launchers in `launchers`, and the problems of --launcher-config."""
    problems: list[Problem] = []
    found = settings.launcher, settings.launchers
    if settings.launcher_config is not None:
        from .yamlfile import read_yaml  # late: most starts read no file

        data, problems = read_yaml(settings.launcher_config)
        if data or not problems:  # otherwise the file could not be read
            try:
                file = LauncherFile.of(data)
            except Unfit as unfit:
                # Better than a problem for each key.
                wrong = [NO_LAUNCHER] if _is_one_launcher(data) else unfit.problems
                problems += [at(settings.launcher_config, problem) for problem in wrong]
            else:
                found = file.launcher, file.launchers
    first, rest = found
    launchers = rest if first is None else (first, *rest)
    return evolve(settings, launcher=None, launchers=launchers), problems


def _is_one_launcher(data: object) -> bool:
    """Whether these are the settings of one launcher, without the key above them."""
    keys = {field_name(key) for key in data} if isinstance(data, dict) else set()
    return bool(keys & fields_of(LauncherSettings).keys()) and not keys & {"launcher", "launchers"}


def with_credentials(settings: RouterSettings) -> tuple[RouterSettings, list[Problem]]:
    """The settings with the keys themselves, and the problems of the files of keys and
    certificates."""
    problems: list[Problem] = []
    found: dict[str, Any] = {}
    files = {"admin": settings.admin_api_key_file, "worker": settings.worker_api_key_file}
    for whose, path in files.items():
        if path is not None:
            with noting(problems, f"--{whose}-api-key-file"):
                found |= {f"{whose}_api_key": key_in(path), f"{whose}_api_key_file": None}
    settings = evolve(settings, **found)
    key = settings.worker_api_key or ""
    if not (key.isascii() and key.isprintable() and " " not in key):
        problems.append(
            Problem("--worker-api-key", "expected printable ASCII characters without spaces")
        )
    if settings.worker_ca is not None:
        with noting(problems, "--worker-ca"):
            _check_certificates(settings.worker_ca)
    if settings.tls_cert is not None and settings.tls_key is not None:
        with noting(problems, ""):
            load_certificate(settings.tls_cert, settings.tls_key, settings.tls_client_ca)
    return settings, problems


def key_in(path: str) -> str:
    """The key in a file. Raises Unfit."""
    try:
        key = Path(path).read_text(encoding="utf-8").strip()
    except UnicodeError:
        raise Unfit(f"{path} is not UTF-8 text") from None
    except OSError as error:
        raise Unfit(f"{path} cannot be read: {describe(error)}") from None
    if not key:
        raise Unfit(f"{path} is empty")
    return key


def _check_certificates(path: str) -> None:
    try:
        ssl.create_default_context(cafile=path)
    except ssl.SSLError:
        raise Unfit(f"{path} contains no valid PEM certificate") from None
    except OSError as error:
        raise Unfit(f"{path} cannot be read: {describe(error)}") from None
