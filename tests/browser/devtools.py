"""A headless Chromium, driven over its DevTools protocol."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import trio
from attrs import Factory, define
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, Ping, Request, TextMessage

from tests.patience import fail_after, stretched

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-port=0"),
)


@define(eq=False)
class Tab:
    """One page. `errors` has what its console complained about."""

    stream: trio.SocketStream
    socket: WSConnection
    errors: list[str] = Factory(list)
    _numbers: Any = Factory(lambda: count(1))
    _answers: dict[int, Any] = Factory(dict)
    _arrived: trio.Condition = Factory(trio.Condition)

    async def listen(self) -> None:
        text = ""
        while data := await self.stream.receive_some():
            self.socket.receive_data(data)
            for event in self.socket.events():
                match event:
                    case TextMessage(data=piece, message_finished=finished):
                        text += piece
                        if finished:
                            await self._take(json.loads(text))
                            text = ""
                    case Ping():
                        await self.stream.send_all(self.socket.send(event.response()))
                    case BytesMessage():
                        raise AssertionError("DevTools speak text")

    async def _take(self, message: dict[str, Any]) -> None:
        match message:
            case {"method": "Runtime.exceptionThrown", "params": params}:
                self.errors.append(json.dumps(params["exceptionDetails"]))
            case {"method": "Log.entryAdded", "params": {"entry": entry}}:
                if entry["level"] == "error":
                    self.errors.append(f"{entry['text']} {entry.get('url', '')}")
            case {"id": number}:
                async with self._arrived:
                    self._answers[number] = message
                    self._arrived.notify_all()

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One call of the protocol; its result."""
        number = next(self._numbers)
        asked = json.dumps({"id": number, "method": method, "params": params})
        await self.stream.send_all(self.socket.send(TextMessage(data=asked)))
        with fail_after(60):
            async with self._arrived:
                while number not in self._answers:
                    await self._arrived.wait()
        message = self._answers.pop(number)
        assert "error" not in message, message
        result: dict[str, Any] = message["result"]
        return result

    async def open(self, url: str) -> None:
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState === 'complete'")

    async def run(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is awaited."""
        options = {"returnByValue": True, "awaitPromise": True, "userGesture": True}
        said = await self.call("Runtime.evaluate", expression=script, **options)
        assert "exceptionDetails" not in said, said["exceptionDetails"]
        return said["result"].get("value")

    async def until(self, condition: str, within: float = 20.0) -> None:
        """Wait until a JavaScript expression is true."""
        with trio.move_on_after(stretched(within)):
            while not await self.run(f"Boolean({condition})"):
                await trio.sleep(0.05)
            return
        raise AssertionError(f"never became true: {condition}")

    async def click(self, selector: str, text: str | None = None) -> None:
        """Click the first element that matches, with this text if one is given."""
        found = f"[...document.querySelectorAll({json.dumps(selector)})]"
        if text is not None:
            found += f".filter((each) => each.textContent.trim() === {json.dumps(text)})"
        await self.until(f"{found}.some((each) => each.offsetParent !== null)")
        await self.run(f"{found}.find((each) => each.offsetParent !== null).click()")

    async def texts(self, selector: str) -> list[str]:
        """The text of all elements that match."""
        found = f"[...document.querySelectorAll({json.dumps(selector)})]"
        told: list[str] = await self.run(f"{found}.map((each) => each.textContent)")
        return told

    async def look(self, *, width: int, height: int, dark: bool = False, scale: float = 1) -> None:
        """The size of the window, and the colours that the user prefers."""
        size = {"width": width, "height": height, "deviceScaleFactor": scale}
        await self.call("Emulation.setDeviceMetricsOverride", **size, mobile=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])

    async def picture(self, place: Path, *, whole: bool = False) -> None:
        """Write what the page looks like as a PNG file."""
        said = await self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        await trio.Path(place).write_bytes(base64.b64decode(said["data"]))


@asynccontextmanager
async def browser() -> AsyncIterator[Tab]:
    """A browser with one empty tab until the block ends."""
    assert BROWSER is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        command = [BROWSER, *FLAGS, f"--user-data-dir={folder}", "about:blank"]
        async with trio.open_nursery() as nursery:
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            process = await nursery.start(_running, command, quiet)
            port = await _port(Path(folder), process)
            async with await _attach(port) as stream:
                tab, listening = await _greet(stream, port), trio.CancelScope()

                async def listen() -> None:
                    with listening:
                        await tab.listen()

                nursery.start_soon(listen)
                try:
                    for domain in ("Page", "Runtime", "Log"):
                        await tab.call(f"{domain}.enable")
                    yield tab
                finally:
                    listening.cancel()
                    nursery.cancel_scope.cancel()


async def _running(
    command: list[str], options: dict[str, Any], task_status: trio.TaskStatus[trio.Process]
) -> None:
    await trio.run_process(command, check=False, task_status=task_status, **options)


async def _port(folder: Path, process: trio.Process) -> int:
    told = folder / "DevToolsActivePort"
    with fail_after(60):
        while not (told.exists() and told.read_text().count("\n")):
            assert process.poll() is None, "the browser has ended"
            await trio.sleep(0.05)
    return int(told.read_text().splitlines()[0])


async def _attach(port: int) -> trio.SocketStream:
    return await trio.open_tcp_stream("127.0.0.1", port)


async def _greet(stream: trio.SocketStream, port: int) -> Tab:
    async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
        pages = (await http.get(f"http://127.0.0.1:{port}/json/list")).json()
    address = next(page for page in pages if page["type"] == "page")["webSocketDebuggerUrl"]
    socket = WSConnection(ConnectionType.CLIENT)
    target = urlsplit(address).path
    await stream.send_all(socket.send(Request(host=f"127.0.0.1:{port}", target=target)))
    while True:
        socket.receive_data(await stream.receive_some())
        if any(isinstance(event, AcceptConnection) for event in socket.events()):
            return Tab(stream, socket)
