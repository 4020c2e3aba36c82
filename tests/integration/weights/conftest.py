from __future__ import annotations

import pytest

from tests.integration.api.pools import RunPool, run_with_pool


@pytest.fixture
def run_pool() -> RunPool:
    """`run_pool(test, IMAGES, VIDEOS, ..., setting=...)`: `test(deployment, *members)` with a
    worker of each kind."""
    return run_with_pool
