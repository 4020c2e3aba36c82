"""Asks a running router, and says in one sentence what went wrong."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import trio
from attrs import define

from ..errors import Problem, SettingsError, StartError, describe, unwrapped
from ..text import from_json, words
from .flags import KEY, Asking

PATIENCE = 30.0  # seconds for an answer that needs no worker
_CONNECT = 10.0


class Refused(StartError):
    """The router answered, and did not do it."""


class NoRouter(StartError):
    """No router answers, or an older one that lacks the command."""

    status = 3


class NoKey(StartError):
    """The router wants another key."""

    status = 4


@define(eq=False)
class Client:
    """A connection to the router at `url`."""

    http: httpx.AsyncClient
    url: str

    async def ask(
        self,
        method: str,
        path: str,
        *,
        within: float | None = PATIENCE,
        content: Any = None,
        told: str | None = None,
        **query: str | None,
    ) -> dict[str, Any]:
        """The JSON of a good answer, or of any that has the field `told`: rows of which some
        failed. Takes at most `within` seconds. Raises StartError otherwise."""
        params = {name: value for name, value in query.items() if value is not None}
        with self.sentences(f"{method} {path}", within):
            limits = httpx.Timeout(within, connect=_CONNECT)
            response = await self.http.request(
                method, path, json=content, params=params, timeout=limits
            )
        said = from_json(response.content)
        if not (isinstance(said, dict) and told in said):
            self.check(response, said)
        if not isinstance(said, dict):
            raise NoRouter(f"What answers at {self.url} is no router: {method} {path} got no JSON")
        return said

    def sentences(self, what: str, within: float | None = None) -> _Sentences:
        """A context in which failures of the connection become sentences."""
        return _Sentences(self.url, what, within)

    def check(self, response: httpx.Response, said: Any) -> None:
        """Raise StartError unless the answer is good."""
        status, what = response.status_code, f"{response.request.method} {response.url.path}"
        if 200 <= status < 300:
            return
        fields = said if isinstance(said, dict) else {}
        sentence, code = words(fields.get("error") or ""), fields.get("code")
        if status in (401, 403):
            raise NoKey(
                f"The router at {self.url} refused {what}: {sentence or f'status {status}'}"
                f" (the key comes from --admin-api-key-file or {KEY})"
            )
        if status in (404, 405) and code in (None, "unknown_path", "not_found", *_WRONG_METHOD):
            raise NoRouter(
                f"What answers at {self.url} does not know {what}: it is no router, or older than"
                " this program"
            )
        if 300 <= status < 400 or not sentence:
            raise NoRouter(f"What answers at {self.url} is no router: {what} got status {status}")
        raise Refused(f"{what}: {sentence} ({code or status})")


_WRONG_METHOD = ("method_not_allowed",)


@define
class _Sentences:
    url: str
    what: str
    within: float | None

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        match error:
            case httpx.ConnectTimeout():
                raise NoRouter(f"No router answers at {self.url}: timed out") from None
            case httpx.TimeoutException():
                limit = "in time" if self.within is None else f"within {self.within:g} s"
                raise NoRouter(f"The router at {self.url} did not answer {self.what} {limit}")
            case httpx.ConnectError():
                raise NoRouter(f"No router answers at {self.url}: {describe(error)}") from None
            case httpx.HTTPError():
                raise NoRouter(
                    f"The answer of {self.url} to {self.what} broke off: {describe(error)}"
                ) from None
            case httpx.InvalidURL():
                raise SettingsError([Problem("--url", f"cannot be used: {error}")]) from None


@asynccontextmanager
async def connected(settings: Asking) -> AsyncIterator[Client]:
    """A client of the router that the settings name. Raises SettingsError."""
    assert settings.url is not None  # by `with_environment`
    headers = {"Accept": "application/json"}
    if settings.admin_api_key is not None:
        headers["Authorization"] = f"Bearer {settings.admin_api_key}"
    verify: ssl.SSLContext | bool = False  # nothing is verified over http
    if settings.url.startswith("https:"):
        verify = _context(settings)
    try:
        http = httpx.AsyncClient(
            base_url=settings.url, headers=headers, verify=verify, trust_env=False
        )
    except (httpx.InvalidURL, ValueError) as error:
        raise SettingsError([Problem("--url", f"cannot be used: {error}")]) from None
    async with http:
        yield Client(http, settings.url)


def _context(settings: Asking) -> ssl.SSLContext:
    flag, file = "--ca", settings.ca
    try:
        context = ssl.create_default_context(cafile=file)
        if settings.cert is not None:
            flag, file = "--cert", settings.cert
            context.load_cert_chain(file, password=_no_password)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        problem = Problem(flag, f"{file} cannot be used: {describe(error)}")
        raise SettingsError([problem]) from None
    return context


def _no_password() -> str:
    raise ValueError("the key is encrypted")


def run(main: Callable[..., Awaitable[int]], *arguments: Any) -> int:
    """Run a command on trio. Raises StartError, SettingsError and KeyboardInterrupt bare."""
    try:
        with unwrapped():
            return trio.run(main, *arguments, strict_exception_groups=True)
    except BaseExceptionGroup as group:
        if group.subgroup(KeyboardInterrupt) is not None:
            raise KeyboardInterrupt from None
        raise
