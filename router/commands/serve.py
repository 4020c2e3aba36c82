"""`serve` and `demo`: from flags and files to settings, and then the router."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from ..errors import Problem
from ..settings import (
    DemoSettings,
    RouterSettings,
    load,
    split_flags,
    with_credentials,
    with_launchers,
)


def reader(arguments: list[str]) -> Callable[[], RouterSettings]:
    """A function that reads the settings, each time anew. It raises SettingsError with all
    mistakes."""
    flags = split_flags(arguments, RouterSettings, config=True)
    steps = [with_launchers, with_credentials]
    return partial(load, RouterSettings, flags, checks=[_bad_worker_urls], steps=steps)


def serve(arguments: list[str]) -> int:
    """Run the router."""
    read = reader(arguments)
    settings = read()

    from .. import service  # late: wrong flags are told at once

    return service.run(settings, read)


def demo(arguments: list[str]) -> int:
    """Run the demo."""
    wanted = load(DemoSettings, split_flags(arguments, DemoSettings))

    from .. import demo

    return demo.run(wanted)


def _bad_worker_urls(settings: RouterSettings) -> Iterator[Problem]:
    """A check for `load`: pool and settings are neighbours that do not know each other."""
    from ..net.addresses import Origin
    from ..net.allowed import AllowedHosts
    from ..pool.ids import BadWorkerURL, normalise_url
    from ..pool.pools import DEFAULT

    named = [(f"worker_urls[{i}]", url, "") for i, url in enumerate(settings.worker_urls)]
    for index, each in enumerate(settings.workers):
        named.append((f"workers[{index}].url", each.url, each.pool if each.pool != DEFAULT else ""))
    for index, members in enumerate(settings.pool):
        named += [(f"pool[{index}]", url, members.name) for url in members.urls]
    pools: dict[str, str] = {}
    for place, url, pool in named:
        try:
            normal = normalise_url(url)
        except BadWorkerURL as error:
            yield Problem(place, error.message)
            continue
        host = Origin.of(normal).host
        if AllowedHosts(settings.allowed_worker_hosts).verdict(host) is False:
            yield Problem(place, f"{host} is not among allowed_worker_hosts")
        if pool and pools.setdefault(normal, pool) != pool:
            yield Problem(place, f"{url} is also in the pool {pools[normal]}")
