"""A few fixed seeds; one is lived through twice, and must be the same history.

`python -m tests.simulation --seed N` replays one, and `nox -s simulate` tries others.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROUND = ("--hours", "0.01")  # one of chaos and one of calm

# Each of these has found a fault of the router, that was put back or was there. A change of the
# simulation makes them seeds like any other: then others are to be looked for.
PINNED = ("1", "2", "11", "19")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="needs socket pairs as Linux has them"),
]


def simulate(*arguments: str) -> str:
    """In a process of its own: the order of sets depends on it."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.simulation", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-20_000:]
    return done.stdout


def test_a_seed_repeats_itself() -> None:
    simulate("--seed", "7", *ROUND, "--twice")


def test_pinned_seeds() -> None:
    simulate("--seed", *PINNED, *ROUND)
