from __future__ import annotations

import pytest

from tests.integration.deployment import RunRouter, run_deployed
from tests.integration.names import names

__all__ = ["names"]


@pytest.fixture
def run_router() -> RunRouter:
    """`run_router(test, **settings)`: `test` gets a Deployment with a router of these settings."""
    return run_deployed
