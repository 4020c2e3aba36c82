"""What several tests want of launchers."""

from __future__ import annotations

from typing import Any

FREE_PORTS: dict[str, Any] = {
    "worker_base_port": 0,
    "master_port_base": 0,
    "scheduler_port_base": 0,
}


def restarting(after: object) -> dict[str, Any]:
    """The setting that has a worker started again so long after its first death."""
    return {"restart_backoff": after}
