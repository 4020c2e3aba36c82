"""Which state directory the settings mean."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from router import service
from router.settings import RouterSettings
from router.store.opening import StateRefused


def test_the_default_is_by_host_name_and_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    store = service.open_store(RouterSettings(port=4711))
    assert store.folder == tmp_path / "sglang-d-router" / f"{socket.gethostname()}-4711"
    store.close()


def test_without_xdg_it_is_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "relative/is/ignored")
    monkeypatch.setenv("HOME", str(tmp_path))
    store = service.open_store(RouterSettings(port=4711))
    assert store.folder is not None
    assert store.folder.is_relative_to(tmp_path / ".local" / "state")
    store.close()


@pytest.mark.parametrize(
    "settings", [RouterSettings(port=0), RouterSettings(state_dir="none")], ids=["port 0", "none"]
)
def test_nothing_is_kept(settings: RouterSettings, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "router")
    assert not service.open_store(settings).keeps
    assert len(caplog.records) == (1 if settings.state_dir is None else 0)


def test_port_0_with_a_directory_keeps_its_state(tmp_path: Path) -> None:
    store = service.open_store(RouterSettings(port=0, state_dir=str(tmp_path)))
    assert store.keeps
    with pytest.raises(StateRefused, match="Another router"):
        service.open_store(RouterSettings(port=0, state_dir=str(tmp_path)))
    store.close()


def test_a_default_that_cannot_be_written_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    assert not service.open_store(RouterSettings(port=4711)).keeps
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert "NO STATE IS KEPT" in record.getMessage()
    given = RouterSettings(port=4711, state_dir=str(tmp_path / "file"))
    with pytest.raises(StateRefused, match="cannot be used: not a directory") as raised:
        service.open_store(given)
    assert raised.value.status == 2
