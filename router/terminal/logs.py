"""`logs`: the output of a launched worker, and what it writes from now on."""

from __future__ import annotations

import httpx

from ..text import from_json, one_line, segment
from .client import PATIENCE, Client, NoRouter, connected
from .flags import Logs
from .screen import Screen


async def show(settings: Logs, words: list[str]) -> int:
    """Print the log; the exit status."""
    (name,), screen = words, Screen()
    async with connected(settings) as client:
        path, tail = f"/workers/{segment(name)}/logs", str(settings.tail)
        if settings.follow:
            await _follow(client, path, tail, screen)
            return 0
        said = await client.ask("GET", path, tail=tail)
        if settings.json:
            screen.json(said)
        else:
            for line in said.get("lines", []):
                screen.say(_line(line))
        return 0


async def _follow(client: Client, path: str, tail: str, screen: Screen) -> None:
    timeout = httpx.Timeout(PATIENCE, read=None)  # a worker may be silent for hours
    params = {"follow": "true", "tail": tail}
    with client.sentences(f"GET {path}"):
        async with client.http.stream("GET", path, params=params, timeout=timeout) as answer:
            if answer.status_code != 200:
                client.check(answer, from_json(await answer.aread()))
            if not answer.headers.get("content-type", "").startswith("text/plain"):
                raise NoRouter(f"The router at {client.url} is too old: it cannot follow logs")
            async for line in answer.aiter_lines():
                screen.say(_line(line))


def _line(text: str) -> str:
    """A line that can do nothing to the terminal."""
    return one_line(text.expandtabs())
