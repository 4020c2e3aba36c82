"""Probes one worker: its health, and its capabilities."""

from __future__ import annotations

from typing import Any

from attrs import evolve, frozen

from ..pool.lifecycle import Probe
from ..pool.pools import USUAL, Kind, Role
from ..pool.worker import Capabilities
from ..text import is_name, words
from .client import Answer, ControlClient, Unreachable

PROBE_TIMEOUT = 5.0  # seconds
_MOST_TOGETHER = 10_000  # the same bound as for max_concurrency


@frozen
class Finding:
    """The result of a probe."""

    probe: Probe
    reason: str | None = None
    # A proxy answered that it cannot reach the worker.
    behind: bool = False
    # There was no connection, and no refusal either: the network, or the machine, is gone.
    unreached: bool = False
    # The id of the answering router, if a router answered.
    instance: str | None = None


async def probe(client: ControlClient, url: str, role: Role = USUAL) -> Finding:
    """Ask `/health` once, or what the role of the worker says."""
    try:
        answer = await client.get(url, role.health_path, within=PROBE_TIMEOUT)
    except Unreachable as error:
        if error.refused:
            return Finding(Probe.REFUSED, str(error))
        return Finding(Probe.FAILED, str(error), unreached=not error.sent)
    if role.kind is Kind.HTTP and answer.status not in (401, 403):
        if 200 <= answer.status < 300:
            return Finding(Probe.OK, instance=answer.instance)
        return Finding(Probe.FAILED, f"GET {role.health_path} answered {answer.status}")
    return evolve(judge(answer), instance=answer.instance)


def judge(answer: Answer) -> Finding:
    """The meaning of an answer of `/health` (worker contract, "Seen on a real worker")."""
    if answer.status == 200:
        return Finding(Probe.OK)
    if answer.status == 503 and not answer.body.strip():
        return Finding(Probe.WARMING, "it is warming up")
    if answer.status in (401, 403):
        return _unauthorized("/health", answer.status)
    if answer.status == 503 and answer.fields.get("status") == "unhealthy":
        why = answer.fields.get("error") or "no reason given"
        return Finding(Probe.BACKEND_DEAD, f"its backend died: {words(why)}")
    # A worker has no other 503 and never a 502: these come from a proxy.
    behind = answer.status in (502, 503)
    return Finding(Probe.FAILED, f"GET /health answered {answer.status}", behind)


def _unauthorized(path: str, status: int) -> Finding:
    what = "it wants a key" if status == 401 else "it refuses the router's key"
    told = f"{what}: GET {path} answered {status}; see --worker-api-key-file"
    return Finding(Probe.UNAUTHORIZED, told)


class NotRead(Exception):
    """The capabilities could not be read; `finding` is the consequence for health."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.reason)
        self.finding = finding


async def read_capabilities(client: ControlClient, url: str) -> Capabilities:
    """The capabilities that the worker tells. Raises NotRead.

    A worker that answers 404 or 405 to one of the three paths does not have that path.
    """
    models = await _read(client, url, "/v1/models")
    server = await _read(client, url, "/server_info")
    info = await _read(client, url, "/model_info")
    return structure(models, server, info)


async def _read(client: ControlClient, url: str, path: str) -> Any:
    try:
        answer = await client.get(url, path, within=PROBE_TIMEOUT)
    except Unreachable as error:
        if error.timed_out and path == "/v1/models":
            # `/v1/models` hangs until warm-up ends.
            raise NotRead(Finding(Probe.WARMING, "it is warming up (/v1/models hangs)")) from error
        kind = Probe.REFUSED if error.refused else Probe.FAILED
        raise NotRead(Finding(kind, str(error))) from error
    if answer.status in (404, 405):
        return None
    if answer.status in (401, 403):
        raise NotRead(_unauthorized(path, answer.status))
    content = answer.json()
    if answer.status != 200 or not isinstance(content, dict):
        what = " and no JSON object" if answer.status == 200 else ""
        raise NotRead(Finding(Probe.FAILED, f"GET {path} answered {answer.status}{what}"))
    return content


def structure(models: Any, server: Any, info: Any) -> Capabilities:
    """Capabilities from the three answers, without missing values and values of a wrong type."""
    models, server, info = (x if isinstance(x, dict) else {} for x in (models, server, info))
    cards = models.get("data")
    cards = [c for c in cards if isinstance(c, dict)] if isinstance(cards, list) else []
    names = [*(card.get("id") for card in cards), server.get("served_model_name")]
    kinds: list[object] = []
    for source in (*cards, info):
        listed = source.get("supported_task_types")
        kinds += listed if isinstance(listed, list) else []
        kinds.append(source.get("task_type"))
    outputs = info.get("output_types")
    # Some versions put their arguments at the top level, others in a nested mapping.
    nested = server.get("server_args")
    arguments = {**(nested if isinstance(nested, dict) else {}), **server}
    return Capabilities(
        models=_words(names),
        task_types=_words(kinds),
        output_types=_words(outputs if isinstance(outputs, list) else []),
        dp_size=_count(arguments.get("dp_size")) or 1,
        model_path=_word(server.get("model_path")) or _word(info.get("model_path")),
        version=_word(server.get("version")),
        batching=_count(arguments.get("batching_max_size")),
    )


def _count(value: object) -> int | None:
    return value if type(value) is int and 1 <= value <= _MOST_TOGETHER else None


def _word(value: object) -> str | None:
    return value if is_name(value) else None


def _words(values: list[object]) -> tuple[str, ...]:
    """The distinct non-empty strings, in order."""
    return tuple(dict.fromkeys(v for v in values if is_name(v)))
