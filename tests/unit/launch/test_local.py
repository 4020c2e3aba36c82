"""Worker processes: started, logged, told of, and ended whatever they do about it."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from router.errors import StartError
from router.launch import local
from router.launch.local import LocalProcess, ProcessSpec, Supervisor
from router.launch.resources import free_port_pair

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX process groups")

READY = "import signal, sys, time; print('ready', flush=True); "


def spec(folder: Path, code: str, **env: str) -> ProcessSpec:
    command = [sys.executable, "-I", "-S", "-c", code]
    return ProcessSpec("worker 1", command, folder / "logs" / "worker.log", env)


def supervise(body: Callable[[Supervisor, list[LocalProcess]], Awaitable[None]]) -> None:
    """Run `body` beside a supervisor, which ends with it."""

    async def main() -> None:
        exits: list[LocalProcess] = []
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                supervisor = Supervisor(exits.append)
                await nursery.start(supervisor.run)
                await body(supervisor, exits)
                nursery.cancel_scope.cancel()

    trio.run(main)


async def until_says(process: LocalProcess, words: str) -> None:
    while words not in process.last_words():
        await trio.sleep(0.01)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").exists() and " Z " in Path(f"/proc/{pid}/stat").read_text()


def test_an_exit_is_told_with_its_last_words(tmp_path: Path) -> None:
    code = "import os; print('x' * 20000); [print(n) for n in range(30)]; print(os.environ['A'])"

    async def body(supervisor: Supervisor, exits: list[LocalProcess]) -> None:
        process = await supervisor.start(spec(tmp_path, code + "; raise SystemExit(3)", A="hi"))
        await process.exited.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert exits == [process]
        assert (process.returncode, process.how_it_ended()) == (3, "exited with status 3")
        assert process.last_words().splitlines() == [*map(str, range(19, 30)), "hi"]

    supervise(body)


def test_a_death_by_signal_is_named(tmp_path: Path) -> None:
    async def body(supervisor: Supervisor, exits: list[LocalProcess]) -> None:
        process = await supervisor.start(spec(tmp_path, READY + "time.sleep(60)"))
        await until_says(process, "ready")
        os.kill(process.process.pid, signal.SIGKILL)
        await process.exited.wait()
        assert process.how_it_ended() == "was ended by SIGKILL"

    supervise(body)


def test_all_are_ended_with_the_supervisor_and_nobody_is_told(tmp_path: Path) -> None:
    started: list[LocalProcess] = []
    told: list[LocalProcess] = []

    async def body(supervisor: Supervisor, exits: list[LocalProcess]) -> None:
        nonlocal told
        told = exits
        for number in range(2):
            process = await supervisor.start(spec(tmp_path / str(number), READY + "time.sleep(60)"))
            started.append(process)
            await until_says(process, "ready")

    supervise(body)
    assert [process.returncode for process in started] == [-signal.SIGINT] * 2 or all(
        process.returncode == 1
        for process in started  # KeyboardInterrupt
    )
    assert told == []


def test_one_that_ignores_signals_is_killed_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_PATIENCE", (0.1, 0.1))
    code = (
        "import os, signal, time\n"
        "for number in (signal.SIGINT, signal.SIGTERM): signal.signal(number, signal.SIG_IGN)\n"
        "child = os.fork()\n"
        "if child: print('child', child, 'ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    pids: list[int] = []

    async def body(supervisor: Supervisor, exits: list[LocalProcess]) -> None:
        process = await supervisor.start(spec(tmp_path, code))
        await until_says(process, "ready")
        pids.extend([process.process.pid, int(process.last_words().split()[1])])

    supervise(body)
    deadline = 200
    while not all(map(gone, pids)) and deadline:
        deadline -= 1
        trio.run(trio.sleep, 0.01)
    assert all(map(gone, pids))


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["/no/such/program"], "worker 1 could not be started: /no/such/program: No such file"),
        (["/"], "worker 1 could not be started: /: Permission denied"),
    ],
)
def test_what_cannot_be_started_is_said(tmp_path: Path, command: list[str], says: str) -> None:
    async def body(supervisor: Supervisor, exits: list[LocalProcess]) -> None:
        with pytest.raises(StartError) as caught:
            await supervisor.start(ProcessSpec("worker 1", command, tmp_path / "log"))
        assert str(caught.value).startswith(says)

    supervise(body)


def test_a_log_that_cannot_be_read(tmp_path: Path) -> None:
    async def body(supervisor: Supervisor, exits: list[LocalProcess]) -> None:
        process = await supervisor.start(spec(tmp_path, "pass"))
        await process.exited.wait()
        process.spec.log.unlink()
        assert process.last_words() == "(its log cannot be read: No such file or directory)"

    supervise(body)


def test_port_pairs_are_free_and_apart() -> None:
    taken: set[int] = set()
    for _ in range(20):
        port = free_port_pair("127.0.0.1", avoid=taken)
        assert not {port, port + 1} & taken
        taken |= {port, port + 1}
        with (
            socket.create_server(("127.0.0.1", port)),
            socket.create_server(("127.0.0.1", port + 1)),
        ):
            pass


def test_no_pair_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = range(65536)
    with pytest.raises(StartError, match="no two neighbouring free ports"):
        free_port_pair("127.0.0.1", avoid=everything)
