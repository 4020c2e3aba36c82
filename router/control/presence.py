"""One idle connection per worker, as evidence that its process is still the same.

Nothing is ever written to it. A worker keeps such a connection open; when its process dies the
end of file arrives within milliseconds (DESIGN section 4).
"""

from __future__ import annotations

import ssl
from urllib.parse import urlsplit

import trio

CONNECT_TIMEOUT = 5.0  # seconds


async def open_idle(url: str) -> trio.abc.Stream | None:
    """Open the idle connection. None if that fails: the probe beside it finds out why."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    stream: trio.abc.Stream | None = None
    try:
        with trio.move_on_after(CONNECT_TIMEOUT):
            if parts.scheme == "https":
                # Without a handshake the worker would close it as a stalled client.
                secure = await trio.open_ssl_over_tcp_stream(host, port, https_compatible=True)
                stream = secure
                await secure.do_handshake()
                return secure
            return await trio.open_tcp_stream(host, port)
    except (OSError, trio.BrokenResourceError, ssl.SSLError):
        pass
    except BaseException:
        if stream is not None:
            await trio.aclose_forcefully(stream)
        raise
    if stream is not None:
        await trio.aclose_forcefully(stream)
    return None


async def wait_closed(stream: trio.abc.Stream) -> str:
    """Wait until the worker ends the idle connection; says how, and closes our side."""
    try:
        data = await stream.receive_some(1)
        return "it sent bytes that nobody asked for" if data else "its idle connection was closed"
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return "its idle connection was reset"
    finally:
        await trio.aclose_forcefully(stream)
