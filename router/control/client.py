"""The HTTP client for control calls. httpx exceptions are mapped here, and nowhere else."""

from __future__ import annotations

import json
from types import TracebackType
from typing import Any, Self

import httpx
from attrs import frozen

from ..errors import describe, is_refusal

# Workers close idle connections after 5 s (worker contract).
_KEEPALIVE = 3.0
_MAX_ANSWER = 8 * 1024 * 1024


class Unreachable(Exception):
    """No answer came. `refused`: nobody listens there; `timed_out`: it took too long."""

    def __init__(self, message: str, *, refused: bool = False, timed_out: bool = False) -> None:
        super().__init__(message)
        self.refused = refused
        self.timed_out = timed_out


@frozen
class Answer:
    """What a worker answered to a control call."""

    status: int
    body: bytes

    def json(self) -> Any:
        """The body as JSON, None if it is none."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None


class ControlClient:
    """Sends control calls to workers. Never reads proxy settings from the environment."""

    def __init__(self) -> None:
        self._client = httpx.AsyncClient(
            trust_env=False,
            limits=httpx.Limits(
                max_connections=None,
                max_keepalive_connections=None,
                keepalive_expiry=_KEEPALIVE,
            ),
            follow_redirects=False,
        )

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._client.__aexit__(kind, error, trace)

    async def get(self, url: str, path: str, *, within: float) -> Answer:
        """GET a path of a worker within so many seconds. Raises Unreachable."""
        try:
            async with self._client.stream("GET", url + path, timeout=within) as response:
                body = bytearray()
                async for piece in response.aiter_bytes():
                    body += piece
                    if len(body) > _MAX_ANSWER:
                        raise Unreachable(f"GET {path} answered more than {_MAX_ANSWER} bytes")
                return Answer(response.status_code, bytes(body))
        except httpx.TimeoutException as error:
            raise Unreachable(
                f"GET {path} had no answer within {within:g} s", timed_out=True
            ) from error
        except httpx.HTTPError as error:
            raise Unreachable(
                f"GET {path} failed: {describe(error)}", refused=is_refusal(error)
            ) from error
