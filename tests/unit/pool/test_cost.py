"""How much work a request is, how fast workers are, and how fast the queue drains."""

from __future__ import annotations

import math
import random

import pytest

from router.pool.cost import Costs, Rate, Shape, Speeds, Value
from router.pool.registry import Registry
from router.pool.worker import Hold, HoldKind, Origin, Worker

IMAGES = "/v1/images/generations"


@pytest.mark.parametrize(
    ("kind", "fields", "work"),
    [
        (IMAGES, {"size": "512x512", "num_inference_steps": 10}, 0.512**2 * 10),
        (IMAGES, {"size": " 512X256 ", "num_inference_steps": 10}, 0.512 * 0.256 * 10),
        (IMAGES, {"width": 512, "height": "256", "num_inference_steps": "10"}, 1.31072),
        (IMAGES, {"size": "512x512", "num_inference_steps": 10, "n": 4}, 0.512**2 * 40),
        ("/rollout/generate", {"num_outputs_per_prompt": 8}, 1.024**2 * 30 * 8),
        ("video", {"size": "100x100", "num_frames": 20, "num_inference_steps": 5}, 1.0),
        ("video", {"size": "100x100", "seconds": "2", "fps": 10, "num_inference_steps": 5}, 1.0),
        ("video", {"size": "100x100", "seconds": 2, "num_inference_steps": 5}, 1.6),
        ("video", {}, 0.832 * 0.48 * 50 * 81),
        ("mesh", {}, 1.024**2 * 50),
        (IMAGES, {}, 1.024**2 * 30),
        # What makes no sense counts as not said.
        (IMAGES, {"size": "big", "num_inference_steps": -3, "n": 0}, 1.024**2 * 30),
        (IMAGES, {"size": "0x10", "width": 5, "n": True}, 1.024**2 * 30),
        (IMAGES, {"num_inference_steps": math.inf, "n": math.nan}, 1.024**2 * 30),
        (IMAGES, {"num_inference_steps": 10**400, "size": None}, 1.024**2 * 30),
    ],
)
def test_the_work_of_a_request(kind: str, fields: dict[str, Value], work: float) -> None:
    assert Costs().work("m", kind, fields) == pytest.approx(work)


def test_what_is_not_said_is_as_it_was_last_for_the_model() -> None:
    costs = Costs()
    costs.work("m", IMAGES, {"size": "100x100", "num_inference_steps": 100, "n": 7})
    assert costs.work("m", IMAGES, {}) == pytest.approx(1.0)  # and not seven of them
    assert costs.work("m", IMAGES, {"num_inference_steps": 50}) == pytest.approx(0.5)
    assert costs.work("m", IMAGES, {}) == pytest.approx(0.5)
    assert costs.work("other", IMAGES, {}) == pytest.approx(Shape().work)
    assert costs.work("m", "/rollout/generate", {}) == pytest.approx(Shape().work)


def test_what_is_remembered_of_models_is_bounded() -> None:
    costs = Costs()
    costs.work("m", IMAGES, {"size": "100x100", "num_inference_steps": 100})
    for number in range(900):
        costs.work(f"other-{number}", IMAGES, {})
    assert costs.work("m", IMAGES, {}) == pytest.approx(1.0)
    for number in range(1100):
        costs.work(f"yet-another-{number}", IMAGES, {})
    assert costs.work("m", IMAGES, {}) == pytest.approx(Shape().work)


def test_speeds_are_kept_by_worker_and_kind() -> None:
    speeds = Speeds()
    speeds.learn("a", "image", 10, 5)
    speeds.learn("b", "image", 10, 20)
    speeds.learn("a", "video", 10, 100)
    assert speeds.expected("a", "image", 4) == 2
    assert speeds.expected("b", "image", 4) == 8
    assert speeds.of("a") == {"image": 0.5, "video": 10}
    assert speeds.per_unit("a", "mesh") is None
    # Nonsense teaches nothing.
    speeds.learn("a", "mesh", 0, 5)
    speeds.learn("a", "mesh", 5, 0)
    assert speeds.per_unit("a", "mesh") is None


def test_outliers_do_not_move_a_speed_and_a_change_does() -> None:
    speeds, rng = Speeds(), random.Random(1)
    speeds.learn("a", "image", 1, 60)  # the first one compiles
    for _ in range(4):
        speeds.learn("a", "image", 1, rng.uniform(0.9, 1.1))
    assert speeds.per_unit("a", "image") == pytest.approx(1, rel=0.15)
    for seconds in (50, 1, 0.001, 1, 30, 1):
        speeds.learn("a", "image", 1, seconds)
        assert speeds.per_unit("a", "image") == pytest.approx(1, rel=0.15)
    for _ in range(6):
        speeds.learn("a", "image", 1, 3)
    assert speeds.per_unit("a", "image") == 3


def test_a_worker_that_is_not_known_is_a_typical_one() -> None:
    speeds = Speeds()
    before = speeds.expected("new", "image", 2)
    assert before == 2 * speeds.expected("new", "image", 1) > 0
    for url, seconds in (("a", 1), ("b", 2), ("c", 9)):
        speeds.learn(url, "image", 1, seconds)
    assert speeds.expected("new", "image", 2) == speeds.typical("image", 2) == 4
    speeds.forget("a")
    assert speeds.per_unit("a", "image") is None
    assert speeds.of("a") == {}


class Busy:
    """A worker on a clock of its own."""

    def __init__(self, slots: int = 1) -> None:
        self.now = 0.0
        self.registry = Registry()
        self.speeds = Speeds(lambda: self.now)
        self.speeds.learn("http://a", "video", 1, 10)
        self.worker: Worker = self.registry.add("http://a", Origin.STATIC, concurrency=slots)

    def hold(self, work: float) -> Hold:
        hold = Hold(self.worker, 1, HoldKind.JOB, "video", work, since=self.now)
        self.registry.lease(self.worker, hold)
        return hold

    def drop(self, hold: Hold) -> None:
        self.registry.drop(hold)
        self.registry.begin(self.worker, self.now)


def test_what_is_outstanding_grows_less_while_it_runs() -> None:
    busy = Busy()
    assert busy.speeds.outstanding(busy.worker) == 0
    first = busy.hold(2)
    second = busy.hold(1)
    assert busy.speeds.outstanding(busy.worker) == 20 + 10
    busy.now = 15
    assert busy.speeds.outstanding(busy.worker) == 5 + 10
    busy.now = 100  # late, but it is not done
    assert busy.speeds.outstanding(busy.worker) == 2 + 10
    busy.drop(first)
    assert (second.since, second.begun) == (0, 100)
    busy.now = 106
    assert busy.speeds.outstanding(busy.worker) == 4


def test_so_many_begin_as_there_are_slots() -> None:
    busy = Busy(slots=2)
    holds = [busy.hold(1) for _ in range(4)]
    assert [hold.begun for hold in holds] == [0, 0, None, None]
    busy.now = 3
    busy.drop(holds[1])
    assert [hold.begun for hold in holds] == [0, 0, 3, None]
    busy.registry.set_concurrency(busy.worker, 3)
    busy.registry.begin(busy.worker, 5)
    assert [hold.begun for hold in holds] == [0, 0, 3, 5]


def test_the_rate_of_the_last_minute() -> None:
    rate = Rate()
    assert rate.per_second(1000.0) == 0
    for tick in range(100):
        rate.count(1000 + tick / 10)
    assert rate.per_second(1010.0) == pytest.approx(10)
    assert rate.per_second(1020.0) == pytest.approx(5)
    assert rate.per_second(1060.0) == pytest.approx(100 / 60)
    assert 0 < rate.per_second(1065.0) < 100 / 60
    assert rate.per_second(1070.0) == 0


def test_a_burst_within_a_second_is_no_infinite_rate() -> None:
    rate = Rate()
    for _ in range(50):
        rate.count(7.5)
    assert rate.per_second(7.5) == 50


def test_what_a_rate_remembers_is_bounded() -> None:
    rate = Rate()
    for tick in range(100_000):
        rate.count(tick / 10)
    assert len(rate._seconds) <= 62
