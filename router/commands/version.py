"""`version`: the program, its Python, and the packages it brings along or runs on."""

from __future__ import annotations

import platform
import sys
from importlib import metadata

from .. import __version__, program

# What the router imports. Only asked for outside an archive, where everything else installed
# beside it is no part of it.
_LIBRARIES = (
    "attrs",
    "cattrs",
    "h11",
    "httpx",
    "hypercorn",
    "prometheus-client",
    "pyyaml",
    "quart",
    "quart-trio",
    "rich",
    "trio",
    "wsproto",
)


def text() -> str:
    """A line for each."""
    packages: dict[str, str] = {}
    for distribution in metadata.distributions():
        place = str(distribution.locate_file(""))
        if program.ARCHIVE is None or place.startswith(program.ARCHIVE):
            packages.setdefault(distribution.name.lower().replace("_", "-"), distribution.version)
    if program.ARCHIVE is None:
        packages = {name: packages[name] for name in _LIBRARIES if name in packages}
    python = f"{platform.python_implementation()} {platform.python_version()}"
    lines = [
        f"{program.PROG} {__version__}",
        f"{python} ({sys.executable})",
        platform.platform(),
        f"{'bundled' if program.ARCHIVE else 'installed'} packages:",
        *(f"  {name} {packages[name]}" for name in sorted(packages)),
    ]
    return "\n".join(lines) + "\n"
