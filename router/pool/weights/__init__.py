"""What a worker must replay to be current: ledgers of weight changes.

`Ledgers` (ledgers.py) is the entry point. It holds every model's ledger and the state of every
worker against it, listens to the registry, and derives the facet `weights`,
`Worker.weight_version`, `Worker.weights_reason` and `Worker.stuck`. Code that calls workers reports
the outcomes to it.
"""

from __future__ import annotations

from .answers import Meaning, meaning, wraps
from .ledger import Change, Ledger, WeightRecord, label_of
from .ledgers import Ledgers
from .numbers import NotGreater, number_of
from .recipe import Recipe, Step

__all__ = [
    "Change",
    "Ledger",
    "Ledgers",
    "Meaning",
    "NotGreater",
    "Recipe",
    "Step",
    "WeightRecord",
    "label_of",
    "meaning",
    "number_of",
    "wraps",
]
