"""Process 1 of a container. A subreaper stands in for it: orphans become its children too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import router

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="subreapers are Linux's")

ROOT = str(Path(router.__file__).parents[1])
BEGIN = (
    "import ctypes, os, signal, subprocess, sys, time\n"
    f"sys.path.insert(0, {ROOT!r})\n"
    "from router import init\n"
    "ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER\n"
    "status = init.run()\n"
    "if status is not None:\n"
    "    sys.exit(status)\n"
)


def start(program: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BEGIN + program],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_orphans_are_waited_for_and_own_children_are_not() -> None:
    program = (
        "script = 'sleep 0.1 >/dev/null & echo $!'\n"
        "orphan = int(subprocess.run(['sh', '-c', script], stdout=-1).stdout)\n"
        "while os.path.exists(f'/proc/{orphan}'):\n"  # a zombie is there too
        "    time.sleep(0.01)\n"
        "own = [subprocess.Popen(['sh', '-c', f'exit {n}']) for n in range(5)]\n"
        "time.sleep(0.2)\n"
        "assert [each.wait() for each in own] == list(range(5))\n"
        "sys.exit(7)\n"
    )
    with start(program) as running:
        assert running.wait(20) == 7


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_are_passed_on(number: signal.Signals) -> None:
    program = (
        f"signal.signal({int(number)}, lambda number, frame: sys.exit(number))\n"
        "print('ready', flush=True)\n"
        "while True:\n"  # a signal just before the sleep is handled after it
        "    time.sleep(0.01)\n"
    )
    with start(program) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        running.send_signal(number)
        assert running.wait(20) == number


def test_a_signal_to_the_terminals_processes_comes_once() -> None:
    program = (
        "seen = []\n"
        "signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))\n"
        "print('ready', flush=True)\n"
        "time.sleep(0.5)\n"
        "sys.exit(len(seen))\n"
    )
    with start(program) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        os.killpg(running.pid, signal.SIGINT)
        assert running.wait(20) == 1


def test_the_status_of_a_killed_program_is_as_a_shell_says_it() -> None:
    with start("os.kill(os.getpid(), signal.SIGKILL)\n") as running:
        assert running.wait(20) == 128 + signal.SIGKILL
