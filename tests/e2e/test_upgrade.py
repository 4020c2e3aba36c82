"""One router follows another on a port that stays open, as under a socket unit of systemd."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.processes import WITHIN, wait_for

pytestmark = pytest.mark.skipif(os.name != "posix", reason="descriptors are passed on by POSIX")


def started(pyz: Path, log: Path, passed_on: socket.socket) -> subprocess.Popen[bytes]:
    """A router with a listening socket as descriptor 3."""
    number = passed_on.fileno()
    script = (
        f"import os, sys; os.dup2({number}, 3);"
        " os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1');"
        " os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-c", script, str(pyz), "--state-dir", "none"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[number],
        )


def test_connections_wait_while_one_router_follows_another(
    router_pyz: Path, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        old = started(router_pyz, tmp_path / "old", listener)
        new = None
        try:
            assert wait_for(r"listening on (http://\S+)", tmp_path / "old", old) == url
            old.send_signal(signal.SIGTERM)
            assert old.wait(WITHIN) == 0
            with socket.create_connection(listener.getsockname(), WITHIN) as client:
                client.sendall(b"GET /live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                new = started(router_pyz, tmp_path / "new", listener)
                assert client.recv(100).startswith(b"HTTP/1.1 200 "), (tmp_path / "new").read_text()
        finally:
            for process in filter(None, (old, new)):
                process.kill()
                process.wait()


def test_a_descriptor_that_is_no_listening_socket_is_refused(
    router_pyz: Path, tmp_path: Path
) -> None:
    with socket.socket() as plain:
        router = started(router_pyz, tmp_path / "log", plain)
        assert router.wait(WITHIN) == 1
    assert "Descriptor 3 of LISTEN_FDS is no listening TCP socket" in (tmp_path / "log").read_text()
