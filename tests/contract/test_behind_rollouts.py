"""Rollouts behind the router: their weights under a refit, and groups that are split."""

from __future__ import annotations

import threading
from array import array
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from simulated_worker.msgpack import decode
from tests.contract.behind import FLUX, Pool
from tests.contract.harness import ROLLOUT, Worker, eventually
from tests.contract.test_rollout import samples, shape

DISK = "/update_weights_from_disk"
SEEDS = range(3)
CHANGES = 6
CLOSE = 0.1  # of bfloat16 numbers up to about 4, after a few steps
VOLATILE = ("request_id", "inference_time_s", "peak_memory_mb")


def pixels(worker: Worker) -> list[bytes]:
    """What the worker makes of each seed."""
    made = [samples(worker, seed=seed)[0] for seed in SEEDS]
    return [sample["generated_output"]["data"] for sample in made]


def test_samples_under_a_refit_are_of_the_version_that_they_name(pool: Pool) -> None:
    """And of no older one than was acknowledged before they were asked for."""
    first = pool.flux[0]
    paths = (first.weights, first.other_weights)
    begun = pool.change(DISK, model_path=paths[1])["weight_version"] - 1
    made = {1: pixels(first)}
    acknowledged = pool.change(DISK, model_path=paths[0])["weight_version"]
    made[0] = pixels(first)
    assert set(made[0]).isdisjoint(made[1])
    assert acknowledged == begun + 2
    over = threading.Event()
    seen: set[int] = set()

    def ask(seed: int) -> None:
        while not over.is_set():
            least = acknowledged
            answer = pool.post("/rollout/generate", model=FLUX, **{**ROLLOUT, "seed": seed})
            version = int(answer.headers["x-weight-version"])
            (sample,) = decode(answer.content)
            weights = made[(version - begun) % 2]
            assert sample["generated_output"]["data"] == weights[SEEDS.index(seed)]
            assert version >= least
            seen.add(version)

    with ThreadPoolExecutor(2 * len(SEEDS)) as threads:
        asking = [threads.submit(ask, seed) for seed in (*SEEDS, *SEEDS)]

        def shown() -> bool:
            """Whether there was a sample of the last version. Raises what an asker has met."""
            for asker in asking:
                if asker.done():
                    asker.result()
            return acknowledged in seen

        try:
            eventually(shown)
            for _ in range(CHANGES):
                path = paths[(acknowledged + 1 - begun) % 2]
                acknowledged = pool.change(DISK, model_path=path)["weight_version"]
                eventually(shown)
        finally:
            over.set()
    for asker in asking:
        asker.result()
    assert seen >= set(range(begun + 2, begun + 3 + CHANGES))


def numbers(tensor: dict[str, Any]) -> array[float]:
    data = tensor["data"][8 + int.from_bytes(tensor["data"][:8], "little") :]
    if tensor["dtype"] == "torch.float32":
        return array("f", data)
    return array("f", array("I", [number << 16 for number in array("H", data)]).tobytes())


def far(one: Any, other: Any) -> float:
    """The greatest difference of two numbers in the tensors; the rest is the same."""
    if not isinstance(one, dict):
        assert one == other
        return 0
    assert one.keys() == other.keys()
    if "__tensor__" not in one:
        return max((far(one[name], other[name]) for name in one if name not in VOLATILE), default=0)
    assert shape(one) == shape(other)
    return max(abs(a - b) for a, b in zip(numbers(one), numbers(other), strict=True))


@pytest.mark.parametrize(
    "noise",
    [{"rollout": False}, {"rollout_sde_type": "ode", "rollout_log_prob_no_const": True}],
)
def test_a_split_group_is_that_of_one_worker(pool: Pool, noise: dict[str, Any]) -> None:
    more = {"num_outputs_per_prompt": 4, **noise}
    whole = samples(pool.flux[0], **more)
    eventually(pool.all_routable)
    body = {**ROLLOUT, **more, "model": FLUX}
    answer = pool.http.post("/rollout/generate", json=body, headers={"X-Split": "true"})
    assert answer.status_code == 200, answer.text
    makers = {f"{pool.ids(worker)};n=2" for worker in pool.flux}
    assert set(answer.headers["x-split-workers"].split(", ")) == makers
    split = decode(answer.content)
    for number, sample in enumerate(whole):
        distances = [far(sample, other) for other in split]
        assert distances[number] < CLOSE, distances
        assert min(distances[:number] + distances[number + 1 :]) > CLOSE  # another seed
        (alone,) = samples(pool.flux[1], **noise, seed=ROLLOUT["seed"] + number)
        assert far({**sample, "seed": alone["seed"]}, alone) < CLOSE
