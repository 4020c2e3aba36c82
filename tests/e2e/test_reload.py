"""SIGHUP applies a changed configuration file to a router that serves."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.e2e.processes import ask
from tests.e2e.test_serve import running

pytestmark = pytest.mark.skipif(os.name != "posix", reason="SIGHUP is POSIX")


def test_sighup_applies_a_changed_file_and_refuses_a_broken_one(
    router_pyz: Path, tmp_path: Path
) -> None:
    file = tmp_path / "router.yaml"
    file.write_text("queue_size: 5\nstate_dir: none\n")
    flags = ["--host", "127.0.0.1", "--port", "0", "--config", str(file), "--retries", "2"]
    with running(router_pyz, *flags) as program:
        url = program.wait_for(r"listening on (http://\S+)")[1]
        file.write_text("queue_size: 6\nlog_level: debug\nretries: 9\nstate_dir: here\n")
        program.process.send_signal(signal.SIGHUP)
        program.wait_for("settings reloaded: applied: queue_size, log_level\n")
        program.wait_for("settings that need a restart: state_dir\n")
        assert ask("GET", f"{url}/queue")["limit"] == 6
        file.write_text("queue_size: 7\nlog_level: loud\n")
        program.process.send_signal(signal.SIGHUP)
        program.wait_for("ERROR   The settings stay as they were: .*router.yaml: .*log_level: ")
        assert ask("GET", f"{url}/queue")["limit"] == 6
        program.process.send_signal(signal.SIGTERM)
        assert program.ends() == 0
