"""What a worker must replay to be current: ledgers of weight changes.

`Ledgers` (ledgers.py) is the way in: it knows every model's ledger and every worker's standing,
hears the registry, and moves the facet `weights`, `Worker.weight_version`, `Worker.weights_reason`
and `Worker.stuck` of each worker by itself. Whoever acts on workers reports what came of it here.
"""

from __future__ import annotations

from .answers import Meaning, meaning
from .change import Change, Kind
from .ledger import Ledger
from .ledgers import Ledgers
from .recipe import Plan, Recipe, Step
from .records import ChangeRecord, LedgerRecord, Paper, WeightRecord

__all__ = [
    "Change",
    "ChangeRecord",
    "Kind",
    "Ledger",
    "LedgerRecord",
    "Ledgers",
    "Meaning",
    "Paper",
    "Plan",
    "Recipe",
    "Step",
    "WeightRecord",
    "meaning",
]
