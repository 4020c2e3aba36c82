"""The composition root: builds the parts, runs them, and ends them."""

from .launched import reap
from .reload import Reload
from .running import Running, run, serve
from .start import address_of, obeyed_signals, open_store, raise_open_files_limit, stop_signal

__all__ = [
    "Reload",
    "Running",
    "address_of",
    "obeyed_signals",
    "open_store",
    "raise_open_files_limit",
    "reap",
    "run",
    "serve",
    "stop_signal",
]
