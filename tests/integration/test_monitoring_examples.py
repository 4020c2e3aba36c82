"""`examples/monitoring/`: what it asks for exists."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families as parse

from router.observe.tally import PREFIX
from tests.integration.api.pools import IMAGES, Member, run_with_pool
from tests.integration.deployment import Deployment

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "examples" / "monitoring"
PARTS = {
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_bucket", "_sum", "_count"),
}
ADDED = {"job", "instance", "le"}  # by Prometheus, and of buckets


def dashboard() -> dict[str, str]:
    """The legends of the panels by their expressions."""
    board = json.loads((MONITORING / "dashboard.json").read_text(encoding="utf-8"))
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    targets = [target for panel in board["panels"] for target in panel.get("targets", ())]
    return {target["expr"]: target["legendFormat"] for target in targets}


def alerts() -> dict[str, str]:
    """The summaries of the alerts by their expressions."""
    groups = loaded("alerts.yml")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    return {rule["expr"]: rule["annotations"]["summary"] for rule in rules}


def loaded(name: str) -> Any:
    return yaml.safe_load((MONITORING / name).read_text(encoding="utf-8"))


async def families(pool: Deployment) -> list[Metric]:
    found = []
    for job in loaded("prometheus.yml")["scrape_configs"]:
        told = await pool.http.get(job.get("metrics_path", "/metrics"))
        assert told.status_code == 200, told.text
        found += parse(told.text)
    return found


@pytest.mark.parametrize("read", [dashboard, alerts])
def test_each_metric_and_label_exists(read: Any) -> None:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)` \| ([\w, ]*) \|", page, re.MULTILINE)
    labels = {PREFIX + name: set(re.findall(r"\w+", cell)) for name, cell in listed}

    async def test(pool: Deployment, a: Member) -> None:
        names = {"up": ADDED}  # Prometheus' own
        for family in await families(pool):
            own = set().union(*(sample.labels for sample in family.samples))
            for part in PARTS.get(family.type, ("",)):
                whole = family.name + part
                documented = labels.get(whole, labels.get(family.name, set()))
                names[whole] = own | documented | ADDED
        for expression, words in read().items():
            used = set(re.findall(r"\b(?:up\b|(?:sglang|process)[\w:]+)", expression))
            assert used
            assert used <= set(names), expression
            of_these = set().union(*(names[name] for name in used))
            by = re.findall(r"\b(?:by|on) \(([^)]*)\)", expression)
            asked = {name.strip() for part in by for name in part.split(",")}
            asked |= set(re.findall(r"(\w+)=~?\"", expression))
            asked |= set(re.findall(r"\{\{ ?(?:\$labels\.)?([a-z_]+) ?\}\}", words))
            assert asked <= of_these, expression

    run_with_pool(test, {**IMAGES, "enable_metrics": True})
