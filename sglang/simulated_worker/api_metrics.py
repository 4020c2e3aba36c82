"""`/metrics`, only with `--enable-metrics`: the load as Prometheus text."""

from __future__ import annotations

from attrs import frozen

from .exchange import Exchange
from .messages import Response, response
from .routing import Route
from .state import State

_LABELS = 'role="monolithic",replica="0"'


@frozen
class MetricsApi:
    """Read from the scheduler's state without waiting in its queue."""

    state: State

    def routes(self) -> list[Route]:
        return [Route("GET", "/metrics", self.metrics)] if self.state.config.enable_metrics else []

    async def metrics(self, _: Exchange) -> Response:
        scheduler = self.state.scheduler
        ended = [entry for entry in self.state.record.generations() if entry.end is not None]
        failed = sum(1 for entry in ended if entry.outcome != "done")
        lines = _metric(
            "sglang:diffusion_num_running_reqs",
            "Requests that run.",
            "gauge",
            {"": sum(1 for work in scheduler.running if work.shape is not None)},
        )
        lines += _metric(
            "sglang:diffusion_num_queue_reqs",
            "Requests that wait.",
            "gauge",
            {"": sum(1 for work in scheduler.queue if work.shape is not None)},
        )
        lines += _metric(
            "sglang:diffusion_requests_total",
            "Requests that ended.",
            "counter",
            {
                ',status="success",is_warmup="false"': len(ended) - failed,
                ',status="error",is_warmup="false"': failed,
            },
        )
        text = "\n".join(lines) + "\n"
        return response(text.encode(), "text/plain; version=0.0.4; charset=utf-8")


def _metric(name: str, help: str, kind: str, values: dict[str, int]) -> list[str]:
    lines = [f"# HELP {name} {help}", f"# TYPE {name} {kind}"]
    lines += [f"{name}{{{_LABELS}{labels}}} {float(value)}" for labels, value in values.items()]
    return lines
