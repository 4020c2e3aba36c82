"""Settings: frozen classes, made of flags and YAML, every mistake reported at once by its path.

One definition per setting (`fields.setting`) gives its flag, its YAML key, its help and its row in
the docs. `structure` and `read_yaml` serve other YAML files as well.
"""

from __future__ import annotations

from .fields import FlagRow, describe, markdown_table
from .flags import Flags, split_flags
from .helptext import entry, flag_help
from .keyfile import read_key, with_credentials
from .launcher import LauncherBackend, LauncherFile, LauncherSettings, Restart
from .launcher_file import with_launchers
from .load import load
from .model import (
    GIB,
    KIB,
    MIB,
    DemoSettings,
    LogLevel,
    QueueOrder,
    RouterSettings,
    RoutingAlgorithm,
)
from .static import WorkerSettings
from .structure import structure
from .yamlfile import read_yaml

__all__ = [
    "GIB",
    "KIB",
    "MIB",
    "DemoSettings",
    "FlagRow",
    "Flags",
    "LauncherBackend",
    "LauncherFile",
    "LauncherSettings",
    "LogLevel",
    "QueueOrder",
    "Restart",
    "RouterSettings",
    "RoutingAlgorithm",
    "WorkerSettings",
    "describe",
    "entry",
    "flag_help",
    "load",
    "markdown_table",
    "read_key",
    "read_yaml",
    "split_flags",
    "structure",
    "with_credentials",
    "with_launchers",
]
