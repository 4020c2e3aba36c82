"""The plan of a bench, and what it makes of its samples."""

from __future__ import annotations

from typing import Any

import pytest

from router.terminal import bench
from router.terminal.bench import Sample
from router.terminal.client import Refused


def test_shares_and_plan() -> None:
    assert bench.shares("image=3,video") == {"image": 3, "video": 1}
    assert bench.plan(8, {"image": 3, "video": 1}) == [*("image", "image", "video", "image")] * 2
    assert bench.plan(3, {"image": 1}) == ["image"] * 3
    assert bench.plan(2, {"image": 0, "video": 1}) == ["video"] * 2
    with pytest.raises(Refused):
        bench.shares("image=0")


@pytest.mark.parametrize(
    ("share", "value"), [(0.5, 5.0), (0.9, 9.0), (0.99, 10.0), (1, 10.0), (0, 1.0)]
)
def test_percentiles_are_values_that_occurred(share: float, value: float) -> None:
    assert bench.percentile([float(n) for n in range(10, 0, -1)], share) == value
    assert bench.percentile([], share) is None


def made(samples: list[Sample], elapsed: float = 10.0, slots: int = 2) -> dict[str, Any]:
    return bench.summary(samples, elapsed, slots, {"a": "image-0"})


def test_the_bound_is_the_work_divided_by_the_slots() -> None:
    found = made([Sample("image", 9.0, "a", 2.0)] * 4 + [Sample("image", 4.0, "b")])
    assert found["work_seconds"] == 12.0  # of the last one only the latency is known
    assert found["work_reported"] == 4
    assert found["bound_seconds"] == 6.0
    assert found["over_bound"] == 1.667
    assert found["per_second"] == 0.5
    assert [(one["name"], one["work_seconds"]) for one in found["workers"]] == [
        ("image-0", 8.0),
        ("b", 4.0),
    ]


def test_the_bound_is_at_least_the_longest_request() -> None:
    assert made([Sample("video", 9.0, "a", 8.0)], slots=4)["bound_seconds"] == 8.0


def test_errors_count_by_code_and_not_as_work() -> None:
    found = made(
        [Sample("image", 1.0, "a", 1.0), Sample("image", 0.1, error="queue_full")] * 2
        + [Sample("video", 5.0, error="job_failed")]
    )
    assert (found["prompts"], found["succeeded"]) == (5, 2)
    assert found["errors"] == {"queue_full": 2, "job_failed": 1}
    assert found["work_seconds"] == 2.0
    assert found["latency_seconds"]["image"] == {"p50": 1.0, "p90": 1.0, "p99": 1.0}
    assert found["latency_seconds"]["video"] == {"p50": None, "p90": None, "p99": None}


def test_nothing_succeeded() -> None:
    found = made([Sample("image", 0.1, error="no_workers")])
    assert (found["bound_seconds"], found["over_bound"], found["workers"]) == (0.0, None, [])
    assert bench.report(found)
