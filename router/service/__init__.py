"""The composition root: builds the parts, runs them, and ends them."""

from .launched import reap
from .running import Running, run, serve
from .start import address_of, open_store, raise_open_files_limit, stop_signals

__all__ = [
    "Running",
    "address_of",
    "open_store",
    "raise_open_files_limit",
    "reap",
    "run",
    "serve",
    "stop_signals",
]
