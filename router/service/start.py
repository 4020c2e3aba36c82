"""Preparations before the port opens: process limits, the key, the store."""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

from ..errors import StartError, describe
from ..net.trust import Trust
from ..pool.ids import normalise_url
from ..pool.pools import Kind, Role
from ..settings import RouterSettings
from ..store.opening import StateRefused, default_folder
from ..store.store import Store
from ..text import LONGEST_LABEL

logger = logging.getLogger("router.service")

_RELOADS = None if sys.platform == "win32" else signal.SIGHUP
_WITHOUT_MEANING = () if sys.platform == "win32" else (signal.SIGUSR1, signal.SIGUSR2)


def open_store(settings: RouterSettings) -> Store:
    """The store that the settings name. Raises StateRefused."""
    given = settings.state_dir
    if given == "none":
        return Store()
    if given is None and settings.port == 0:
        logger.info(
            "no state is kept, because --port 0 is another port at each start; set --state-dir to"
            " keep state"
        )
        return Store()
    folder: Path | None = None
    try:
        folder = default_folder(settings.port) if given is None else Path(given)
        return Store.open(
            folder.absolute(), fresh=settings.fresh, best_effort=settings.state_best_effort
        )
    except (OSError, RuntimeError) as error:  # RuntimeError: the user has no home
        if given is not None:
            raise StateRefused(
                f"The state directory {folder} cannot be used: {describe(error)}"
            ) from error
        where = "" if folder is None else f"{folder} cannot be used: "
        logger.warning(
            "NO STATE IS KEPT: %s%s; set --state-dir to a directory, or to none",
            where,
            describe(error),
        )
        return Store()


def run_of(settings: RouterSettings) -> str | None:
    """The name of the trainer's run; None if it is not known. Raises StartError."""
    run = settings.run_id or os.environ.get("SGLANG_D_ROUTER_RUN_ID") or None
    if run is not None and len(run) > LONGEST_LABEL:
        raise StartError(f"SGLANG_D_ROUTER_RUN_ID must have at most {LONGEST_LABEL} characters")
    return run


def static_workers(settings: RouterSettings) -> dict[str, int | None]:
    """The workers in the settings, by normalised URL, with their configured slots."""
    found: dict[str, int | None] = {normalise_url(url): None for url in settings.worker_urls}
    found |= {normalise_url(url): None for each in settings.pool for url in each.urls}
    return found | {normalise_url(each.url): each.max_concurrency for each in settings.workers}


def static_roles(settings: RouterSettings) -> dict[str, Role]:
    """The roles of workers in the settings, by normalised URL."""
    found = {
        normalise_url(each.url): Role(each.pool, Kind(each.kind), each.health_path)
        for each in settings.workers
    }
    return found | {
        normalise_url(url): Role(each.name) for each in settings.pool for url in each.urls
    }


def static_pools(settings: RouterSettings) -> set[str]:
    """The pools in the settings."""
    named = {each.name for each in settings.pool} | {each.pool for each in settings.workers}
    return named | {each.pool for each in settings.launchers}


def obeyed_signals() -> list[signal.Signals]:
    """The signals that the router handles: those that request a clean stop, and SIGUSR1 and
    SIGUSR2, which log-rotating scripts send and which would otherwise end the router.

    SIGHUP reloads the settings, or requests a stop if the terminal was closed. It
    and SIGQUIT are left alone if they are ignored at the start: `nohup`, and shells that
    start a background program, ignore them so that the program survives.
    """
    found = [signal.SIGINT, signal.SIGTERM, *_WITHOUT_MEANING]
    if sys.platform != "win32":
        found += [
            number
            for number in (signal.SIGHUP, signal.SIGQUIT)
            if signal.getsignal(number) is not signal.SIG_IGN
        ]
    return found


class Terminal:
    """The terminal from which the process was started, if there is one."""

    def __init__(self) -> None:
        self._file: int | None = None
        with suppress(OSError):
            self._file = os.open("/dev/tty", os.O_RDWR | getattr(os, "O_NOCTTY", 0))

    @property
    def closed(self) -> bool:
        """Whether it was closed since."""
        return self._file is not None and not os.isatty(self._file)


async def stop_signal(
    signals: AsyncIterator[int],
    terminal: Terminal | None = None,
    reload: Callable[[], None] | None = None,
) -> signal.Signals:
    """Wait for the next signal that requests a stop. SIGHUP calls `reload`, if there is one and the
    terminal has not been closed."""
    while True:
        number = signal.Signals(await anext(signals))
        if number in _WITHOUT_MEANING:
            logger.info("%s ignored: the router does not use this signal", number.name)
        elif reload is None or number is not _RELOADS or (terminal and terminal.closed):
            return number
        else:
            reload()


def trust_of(settings: RouterSettings) -> Trust:
    """The trust for connections to workers, from the settings."""
    if settings.worker_insecure:
        logger.warning("THE CERTIFICATES OF WORKERS ARE NOT VERIFIED: --worker-insecure is set")
    named = os.environ.get("SSL_CERT_FILE")
    if named and settings.worker_ca is None and not os.access(named, os.R_OK):
        logger.warning(
            "SSL_CERT_FILE names %s, which cannot be read: the router trusts no https worker", named
        )
    return Trust(settings.worker_ca, settings.worker_insecure, settings.worker_api_key)


def address_of(listener: socket.socket, *, secure: bool = False) -> str:
    """The URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    scheme = "https" if secure else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a listener on this host."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def spare_the_collector() -> None:
    """Exclude imported objects from garbage collection, and collect less often. An exchange makes
    hundreds of objects, hardly any in a cycle, and collections would take a tenth of its time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(5000, 20, 20)


def raise_open_files_limit() -> None:
    """Raise the limit of open files as far as the system allows: every exchange takes two."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError) as error:  # macOS has a lower limit that it does not report
            logger.warning("the open-files limit cannot be raised and stays at %d: %s", soft, error)
