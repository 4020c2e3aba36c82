from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

import build_zipapp


@pytest.fixture(scope="session", autouse=True)
def _signals_arrive() -> None:
    """A shell has what runs in its background ignore SIGINT and SIGQUIT, nohup SIGHUP; a program
    that is started here would inherit that."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


@pytest.fixture(scope="session")
def router_pyz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built router.pyz: that of the environment variable ROUTER_PYZ, else built here."""
    given = os.environ.get("ROUTER_PYZ")
    if given:
        return Path(given).resolve()
    built = tmp_path_factory.mktemp("dist") / "router.pyz"
    build_zipapp.build(built)
    return built


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker("e2e")
