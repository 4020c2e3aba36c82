"""A few fixed seeds, each lived through twice: it must be the same history.

`python -m tests.simulation --seed N` replays one, and `nox -s simulate` tries others.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


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


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the network is made of Linux's socket pairs")
def test_histories_of_fixed_seeds_are_well_and_repeat_themselves() -> None:
    simulate("--seed", "3", "--seeds", "2", "--hours", "0.01", "--twice")
