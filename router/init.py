"""What process 1 of a container owes to the others: it waits for orphans, and passes signals on.

Processes whose parent has ended become children of process 1, and stay zombies until it waits for
them. The program itself runs in a child then: it waits for processes of its own, whose exit
statuses nobody else may take.
"""

from __future__ import annotations

import os
import signal
import sys

# Faults of ours, and what cannot be blocked.
_NOT_PASSED_ON = ("KILL", "STOP", "SEGV", "BUS", "FPE", "ILL", "TRAP", "ABRT", "SYS")


def needed() -> bool:
    """Whether this is process 1, as the command of a container without `--init` is."""
    return sys.platform != "win32" and os.getpid() == 1


def run() -> int | None:
    """Fork. Returns None in the child, which is to be the program; and in this process, once the
    child has ended, its exit status (above 128 for a signal)."""
    if sys.platform == "win32":
        return None
    passed_on = signal.valid_signals() - {getattr(signal, f"SIG{name}") for name in _NOT_PASSED_ON}
    # Blocked and waited for: process 1 would never see a signal that it has no handler for.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, passed_on)
    child = os.fork()
    if child == 0:
        os.setsid()  # signals of a terminal come through the parent, and so only once
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return None
    while True:
        number = signal.sigwait(passed_on)
        if number != signal.SIGCHLD:
            os.kill(child, number)  # it is there until we wait for it
        elif (status := _wait_for_all(child)) is not None:
            return status


def _wait_for_all(child: int) -> int | None:
    """Wait for all processes that have ended; the exit status of `child` if it is among them."""
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        if pid == 0:
            return None
