"""What a scrape of the router gets."""

from __future__ import annotations

from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families as parse

from tests.integration.deployment import Deployment


async def scrape(pool: Deployment, path: str) -> dict[str, Metric]:
    """The metric families at this path, by name: each is there once."""
    answer = await pool.http.get(path)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=")
    families = list(parse(answer.text))
    assert len({family.name for family in families}) == len(families)
    return {family.name: family for family in families}
