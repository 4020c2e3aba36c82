"""The demo: a router with simulated workers, to see it work without a GPU."""

from .run import run

__all__ = ["run"]
