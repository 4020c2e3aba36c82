"""Spoilt bytes of clients and workers: nothing ends the router, misleads it, or is lost in it.

The default run has fixed examples. `nox -s fuzz` goes on for FUZZ_SECONDS (ten minutes) or
FUZZ_CASES cases, from FUZZ_SEED on, FUZZ_BATCH for each router; it says how to repeat what failed.
"""

from __future__ import annotations

import os
import random
import resource
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.mutations import make_case
from tests.fuzz.peers import Batch
from tests.fuzz.pinned import pinned
from tests.fuzz.rig import run_batch

SIZE = 250
LONG = {"FUZZ_SECONDS", "FUZZ_CASES", "FUZZ_SEED"} & set(os.environ)


def batch_of(seed: int, size: int = SIZE) -> Batch:
    """The batch of a seed; each fourth is of changes, too."""
    rng = random.Random(seed)
    changes = seed % 4 == 3
    cases = [make_case(rng, changes=changes) for _ in range(size)]
    return run_batch(cases, str(seed), changes=changes)


def check(batch: Batch) -> None:
    again = f"FUZZ_SEED={batch.seed} FUZZ_BATCH={len(batch.cases)} FUZZ_CASES=1 nox -s fuzz"
    shown = "\n\n".join(batch.faults[:5])
    if batch.faults:
        pytest.fail(
            f"{len(batch.faults)} faults; `{again}` repeats this batch\n{shown}", pytrace=False
        )


@pytest.mark.skipif(bool(LONG), reason="the long run is another")
def test_what_has_once_harmed_a_router() -> None:
    check(run_batch([*pinned()], "pinned"))


@pytest.mark.skipif(bool(LONG), reason="the long run is another")
@pytest.mark.parametrize("seed", range(8))
def test_spoilt_exchanges_harm_nobody(seed: int) -> None:
    check(batch_of(seed))


@pytest.mark.skipif(bool(LONG), reason="the long run is another")
@settings(max_examples=10, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False), st.integers(1, 30), st.booleans())
def test_spoilt_exchanges_as_hypothesis_finds_them(
    rng: random.Random, size: int, changes: bool
) -> None:
    cases = [make_case(rng, changes=changes) for _ in range(size)]
    batch = run_batch(list({case.token: case for case in cases}.values()), "0", changes=changes)
    check(batch)


@pytest.mark.skipif(not LONG, reason="`nox -s fuzz`")
def test_for_long() -> None:
    seed = first = int(os.environ.get("FUZZ_SEED", time.monotonic_ns() // 1000))
    seconds = float(os.environ.get("FUZZ_SECONDS", "600"))
    most = int(os.environ.get("FUZZ_CASES", "0")) or None
    size = int(os.environ.get("FUZZ_BATCH", "1500"))
    print(f"\nfrom FUZZ_SEED={first}")
    begun, done = time.monotonic(), 0
    while time.monotonic() - begun < seconds and (most is None or done < most):
        batch = batch_of(seed, size)
        done += size
        took = time.monotonic() - begun
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        met = dict(batch.statuses.most_common(6))
        print(f"seed {seed}: {done} cases, {done / took:.0f}/s, {grown} MiB, {met}", flush=True)
        check(batch)
        seed += 1
