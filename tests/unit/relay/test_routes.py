"""The route table: every row is found, and nothing that is the router's own slips past it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.pool.worker import Task
from router.relay.routes import ROUTES, How, Route, find

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "BREW"]


def example(route: Route) -> str:
    path = re.sub(r"\{\+\w+\}", "/".join(["some", *route.naming, "where"]), route.path)
    return re.sub(r"\{\w+\}", "some-id", path)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.methods[0]} {route.path}")
def test_every_row_is_reached(route: Route) -> None:
    for method in route.methods:
        assert find("POST" if method == "*" else method, example(route)) is route


@pytest.mark.parametrize(
    "path",
    [
        "/workers",
        "/workers/",
        "/workers/http://h:1",
        "/workers/http:/h:1",
        "/workers/http%3A%2F%2Fh%3A1",
        "/workers/http://h:1/",
        "/workers/a\nb",
        "/health",
        "/health/",
        "/live",
        "/ready",
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_the_routers_own_paths_are_its_own_with_any_method(method: str, path: str) -> None:
    assert find(method, path).how is How.OWN


@pytest.mark.parametrize(
    ("method", "path", "how", "task"),
    [
        ("POST", "/v1/images/generations", How.GENERATE, Task.IMAGE),
        ("POST", "/v1/images/generations/", How.GENERATE, Task.IMAGE),
        ("POST", "/v1/images/edits", How.GENERATE, Task.EDIT),
        ("POST", "/v1/videos", How.SUBMIT, Task.VIDEO),
        ("GET", "/v1/videos", How.MERGED, Task.VIDEO),
        ("GET", "/v1/videos/abc", How.OWNER, Task.VIDEO),
        ("DELETE", "/v1/videos/abc/", How.OWNER, Task.VIDEO),
        ("GET", "/v1/videos/abc/content", How.OWNER, Task.VIDEO),
        ("GET", "/v1/images/abc/content", How.OWNER, None),
        ("POST", "/update_weights_from_disk", How.CHANGE, None),
    ],
)
def test_the_main_rows(method: str, path: str, how: How, task: Task | None) -> None:
    route = find(method, path)
    assert (route.how, route.task) == (how, task)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("OPTIONS", "*"),
        ("GET", "/v1/images/generations"),  # the worker says what it thinks of that
        ("GET", "/workersx"),
        ("GET", "/healthz"),
        ("GET", "/x/workers"),
        ("GET", "//workers"),
        ("POST", "/v1/videos/a/b"),
        ("BREW", "/pot"),
        ("GET", "/a\nb"),
        ("GET", ""),
    ],
)
def test_anything_else_goes_to_any_worker(method: str, path: str) -> None:
    assert find(method, path).how is How.ANY


@pytest.mark.parametrize(
    "path", ["/x_Weights", "/v1/loras/x", "/memory/free", "/a/clear_cache", "/load_lora_adapter"]
)
def test_what_may_change_weights_goes_to_no_single_worker(path: str) -> None:
    assert find("POST", path).how is How.REFUSED
    assert find("GET", path).how is How.ANY


SEGMENTS = sorted({segment for route in ROUTES for segment in route.path.split("/")})


@given(
    st.sampled_from(METHODS),
    st.lists(st.sampled_from([*SEGMENTS, "a", "a b", "\n", "{x}"]), max_size=5).map("/".join),
    st.booleans(),
)
def test_the_first_row_that_matches_wins(method: str, path: str, rooted: bool) -> None:
    path = f"/{path}" if rooted else path
    own = (How.OWN, How.CHANGE, How.TOGETHER, How.GATHER)
    matching = [r for r in ROUTES if r.matches(None if r.how in own else method, path)]
    assert find(method, path) is (matching[0] if matching else ROUTES[-1])
