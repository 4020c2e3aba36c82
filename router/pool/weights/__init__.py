"""What a worker must replay to be current: ledgers of weight changes.

`Ledgers` (ledgers.py) is the way in: it knows every model's ledger and what every worker has of it,
hears the registry, and derives the facet `weights`, `Worker.weight_version`,
`Worker.weights_reason` and `Worker.stuck` of each worker. Whoever acts on workers reports what came
of it here.
"""

from __future__ import annotations

from .answers import Meaning, meaning
from .ledger import Change, Ledger, WeightRecord, label_of
from .ledgers import Ledgers
from .recipe import Recipe, Step

__all__ = [
    "Change",
    "Ledger",
    "Ledgers",
    "Meaning",
    "Recipe",
    "Step",
    "WeightRecord",
    "label_of",
    "meaning",
]
