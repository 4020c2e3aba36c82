"""The yardstick: stock hypercorn on trio, with an app that answers by itself.

Run as a script: `stock.py PORT`.
"""

from __future__ import annotations

import sys
from typing import Any

import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from upstream import TINY  # type: ignore[import-not-found]

_HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(TINY))]


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        while True:
            event = (await receive())["type"]
            await send({"type": f"{event}.complete"})
            if event == "lifespan.shutdown":
                return
    while (await receive()).get("more_body", False):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
    await send({"type": "http.response.body", "body": TINY, "more_body": False})


def main(port: int) -> None:
    config = Config()
    config.bind = [f"127.0.0.1:{port}"]
    config.loglevel = "warning"
    trio.run(serve, app, config)


if __name__ == "__main__":
    main(int(sys.argv[1]))
