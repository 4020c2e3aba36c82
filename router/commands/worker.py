"""`simulate-worker`: the simulated worker, which shares no code with the router."""

from __future__ import annotations

import importlib.util
import os
import sys

from .. import program
from ..errors import StartError

_HOME = __package__.rpartition(".")[0]  # `router`, or the name of an installed copy


def simulate(arguments: list[str]) -> int:
    """Hand all arguments to the simulated worker."""
    name = f"{_HOME}.simulated_worker"  # of a copy that pip installed
    if importlib.util.find_spec(name) is None:
        name = "simulated_worker"
        if importlib.util.find_spec(name) is None:
            # In a checkout it lies in a folder called sglang. That one is appended, and not
            # imported as a package, so that it never hides the real sglang.
            sys.path.append(os.path.join(program.ROOT, "sglang"))
    try:
        worker = importlib.import_module(f"{name}.cli")
    except ModuleNotFoundError as error:
        if error.name not in (name, f"{name}.cli"):
            raise
        raise StartError("this copy of the program does not contain the simulated worker") from None
    return int(worker.main(arguments) or 0)
