"""Trainers that start their own engines: their calls, word for word, to the built router, and past
it to the engines; and what docs/rl-recipes.md adds to these calls."""

from __future__ import annotations

import base64
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import msgpack  # type: ignore[import-untyped]
import pytest
from attrs import define, field

from tests.e2e.processes import WITHIN, router, wait_for
from tests.e2e.test_rl_examples import python_of

MODEL = "Qwen/Qwen-Image"
BUCKETS = ("transformer_blocks.0", "transformer_blocks.1", "proj_out")
PROMPTS, SAMPLES, MICROGROUP = 3, 8, 2  # 12 requests for each step

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kill -9")


@define(eq=False)
class Engine:
    """An engine, as its trainer has it: a process, and calls to it past the router."""

    process: subprocess.Popen[bytes]
    url: str
    http: httpx.Client

    def post(self, endpoint: str, payload: dict[str, Any] | None = None) -> Any:
        """Raises httpx.HTTPError."""
        response = self.http.post(f"{self.url}/{endpoint}", json=payload or {})
        response.raise_for_status()
        return response.json()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def weights(self) -> str:
        """What the worker really has."""
        return str(self.http.get(f"{self.url}/simulate").json()["state"]["weights"])

    def made_with(self) -> list[str]:
        """The weights of each rollout that the worker has made."""
        entries = self.http.get(f"{self.url}/simulate/log").json()["entries"]
        return [entry["weights"] for entry in entries if entry["kind"] == "rollout"]


@define(eq=False)
class Trainer:
    """What all these trainers do. `router` is a URL."""

    router: str
    pyz: Path
    logs: Path
    http: httpx.Client
    recipes: dict[str, Any]  # the functions of the page
    numbers: Iterator[int] = field(factory=itertools.count)
    engines: list[Engine] = field(factory=list)
    launched: list[Engine] = field(factory=list)

    def launch(self) -> Engine:
        """Start an engine and wait until it is healthy. The router does not know it yet."""
        log = self.logs / f"engine-{next(self.numbers)}.log"
        flags = ["--model-path", MODEL, "--port", "0", "--time-scale", "0.1"]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, self.pyz, "simulate-worker", *flags],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        engine = Engine(process, "", self.http)
        self.launched.append(engine)
        engine.url = wait_for(r"serving .* on (http://\S+)", log, process)
        until(lambda: self.http.get(f"{engine.url}/health_generate").status_code == 200)
        return engine

    def get(self, path: str) -> Any:
        return self.http.get(self.router + path).json()

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.http.post(self.router + path, json=body)

    def worker(self, engine: Engine) -> dict[str, Any]:
        """What the router says of it."""
        found = [w for w in self.get("/workers")["workers"] if w["url"] == engine.url]
        return found[0] if found else {}

    def add_worker(self, engine: Engine) -> None:
        self.http.post(f"{self.router}/add_worker?url={engine.url}").raise_for_status()

    def shutdown(self, engine: Engine) -> None:
        """At the end of an engine, and when it was found dead."""
        self.http.post(f"{self.router}/remove_worker?url={engine.url}").raise_for_status()
        engine.kill()

    def push(self, engine: Engine, version: int, die: Callable[[], None] | None = None) -> None:
        """All weights, in buckets, past the router. `die` happens after the first bucket."""
        for bucket in BUCKETS:
            digest = f"{bucket} of {version}"
            named = base64.b64encode(json.dumps({f"{bucket}.weight": digest}).encode()).decode()
            payload = {
                "serialized_named_tensors": [named],
                "load_format": "flattened_bucket",
                "target_modules": ["transformer"],
                "weight_version": str(version),
            }
            assert engine.post("update_weights_from_tensor", payload)["success"] is True
            if die is not None:
                die()

    def update_weights(self, version: int, dies: Engine | None = None) -> None:
        """All engines at once, each with its own handles: what one engine gets is of use to no
        other."""

        def push(engine: Engine) -> None:
            if engine is dies:
                with pytest.raises(httpx.TransportError):
                    self.push(engine, version, die=engine.kill)
                until(lambda: self.worker(engine)["suspicion"])  # the router has seen it
            else:
                self.push(engine, version)

        with ThreadPoolExecutor(len(self.engines)) as pool:
            list(pool.map(push, self.engines))

    def refit(self, version: int, dies: Engine | None = None) -> Any:
        return self.recipes["refit"](lambda: self.update_weights(version, dies), version)

    def tell(self, *, sleeping: bool) -> None:
        self.recipes["tell"]([engine.url for engine in self.engines], sleeping)


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + WITHIN
    while True:
        with suppress(httpx.HTTPError):
            if true():
                return
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)


@pytest.fixture
def trainer(router_pyz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trainer]:
    """A router without workers, and a trainer without engines."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    flags = ("--state-dir", tmp_path / "state", "--health-check-interval", "1")
    with ExitStack() as stack:
        url = stack.enter_context(router(router_pyz, tmp_path / "router.log", *flags))
        client = stack.enter_context(httpx.Client(timeout=WITHIN))
        recipes: dict[str, Any] = {}
        program = "\n".join([python_of("rl.md")[0], *python_of("rl-recipes.md")])
        exec(program.replace("http://localhost:30081", url), recipes)
        stack.callback(recipes["router"].close)
        recipes["router"].timeout = WITHIN  # a broken recipe fails, and does not hang
        trainer = Trainer(url, router_pyz, tmp_path, client, recipes)
        stack.callback(lambda: [engine.kill() for engine in trainer.launched])
        yield trainer


def several(count: int, trainer: Trainer) -> list[Engine]:
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda _: trainer.launch(), range(count)))


# --- miles_diffusion ---


def microgroups(rollout_seed: int) -> list[dict[str, Any]]:
    """The bodies of one step."""
    sampling = {
        "generator_device": "cuda",
        "negative_prompt": None,
        "width": 64,
        "height": 64,
        "num_inference_steps": 4,
        "guidance_scale": 1.0,
        "true_cfg_scale": 4.0,
        "rollout": True,
        "rollout_sde_type": "sde",
        "rollout_noise_level": 1.2,
        "rollout_log_prob_no_const": True,
        "rollout_debug_mode": False,
        "rollout_return_denoising_env": True,
        "rollout_return_dit_trajectory": True,
    }
    return [
        {
            **sampling,
            "seed": rollout_seed + group * SAMPLES + first,
            "prompt": f"a sign that says {group}",
            "num_outputs_per_prompt": MICROGROUP,
        }
        for group in range(PROMPTS)
        for first in range(0, SAMPLES, MICROGROUP)
    ]


def generate(trainer: Trainer, rollout_seed: int, dies: Engine | None = None) -> list[str]:
    """All microgroups at once; any failure is tried again, as often as 60 times. `dies`: an engine
    that dies once the first answer has come. The weight versions of the answers."""
    first = threading.Event()

    def one(payload: dict[str, Any]) -> str:
        for retries in range(60):
            try:
                response = trainer.http.post(f"{trainer.router}/rollout/generate", json=payload)
                response.raise_for_status()
                break
            except httpx.HTTPError:
                if retries == 59:
                    raise
                time.sleep(0.5)
        samples = msgpack.unpackb(response.content, raw=False)
        assert [sample["seed"] for sample in samples] == [payload["seed"]] * MICROGROUP
        assert all(sample["rollout_log_probs"]["__tensor__"] for sample in samples)
        assert all(sample["dit_trajectory"]["latents"]["data"] for sample in samples)
        first.set()
        return response.headers["x-weight-version"]

    with ThreadPoolExecutor(PROMPTS * SAMPLES // MICROGROUP) as pool:
        running = [pool.submit(one, payload) for payload in microgroups(rollout_seed)]
        if dies is not None:
            assert first.wait(WITHIN)
            dies.kill()
        return [done.result() for done in running]


def test_a_step_of_miles_diffusion(trainer: Trainer) -> None:
    trainer.engines = several(3, trainer)
    for engine in trainer.engines:
        trainer.add_worker(engine)
    first, second, third = trainer.engines

    # Before the first rollout the engines get the weights of the trainer.
    for engine in trainer.engines:
        engine.post("resume_memory_occupation")
    assert trainer.refit(1)["success"] is True
    old = first.weights()
    assert old == second.weights() == third.weights()

    # An engine dies while it generates: the others make all of the step.
    assert generate(trainer, 1000, dies=third) == ["1"] * 12
    trainer.shutdown(third)
    trainer.engines = [first, second]

    # The GPUs are the trainer's.
    trainer.tell(sleeping=True)
    for engine in trainer.engines:
        assert engine.post("release_memory_occupation")["sleeping"] is True
    refused = trainer.post("/rollout/generate", **microgroups(0)[0])
    assert (refused.status_code, refused.json()["code"]) == (503, "pool_asleep")

    # They wake; the dead engine is replaced, and treated as if it had slept.
    for engine in trainer.engines:
        engine.post("resume_memory_occupation")
    trainer.tell(sleeping=False)
    third = trainer.launch()
    trainer.add_worker(third)
    third.post("release_memory_occupation")
    third.post("resume_memory_occupation")
    trainer.engines.append(third)
    assert trainer.worker(third)["routable"] is False  # it has never had version 1

    # An engine dies in the middle of its push. The other two have the version.
    with pytest.raises(RuntimeError) as refusal:
        trainer.refit(2, dies=second)
    said = json.loads(str(refusal.value))
    assert (said["success"], said["weight_version"]) == (False, 2)
    assert said["workers"] == [trainer.worker(engine)["id"] for engine in (first, third)]
    assert said["behind"] == [trainer.worker(second)["id"]]
    trainer.shutdown(second)

    # Its successor lacks the version, and gets nothing until all weights are pushed again.
    second = trainer.launch()
    trainer.add_worker(second)
    trainer.engines = [first, second, third]
    assert trainer.worker(second)["routable"] is False
    assert generate(trainer, 2000) == ["2"] * 12
    assert second.made_with() == []
    assert trainer.refit(3)["success"] is True

    new = first.weights()
    assert new == second.weights() == third.weights() != old
    for engine in trainer.engines:
        trainer.http.delete(f"{engine.url}/simulate/log")
    assert generate(trainer, 3000) == ["3"] * 12
    made_with = [weights for engine in trainer.engines for weights in engine.made_with()]
    assert made_with == [new] * 12


def test_a_push_that_fails_is_aborted(trainer: Trainer) -> None:
    trainer.engines = several(2, trainer)
    for engine in trainer.engines:
        trainer.add_worker(engine)
    assert trainer.refit(1)["success"] is True

    def half() -> None:
        trainer.push(trainer.engines[0], 2)
        raise ValueError("the trainer fails")

    with pytest.raises(ValueError, match="the trainer fails"):
        trainer.recipes["refit"](half, 2)
    # Nobody knows what they have, and pushes cannot be made again.
    assert [trainer.worker(engine)["routable"] for engine in trainer.engines] == [False, False]
    assert trainer.refit(2)["success"] is True
    assert generate(trainer, 1000) == ["2"] * 12


def test_pushes_of_adapters(trainer: Trainer) -> None:
    trainer.engines = several(2, trainer)
    for engine in trainer.engines:
        trainer.add_worker(engine)

    def push(version: int) -> None:
        names = [f"transformer_blocks.0.attn.to_q.lora_{half}" for half in "AB"]
        named = json.dumps({name: f"of {version}" for name in names}).encode()
        for engine in trainer.engines:
            payload = {
                "serialized_named_tensors": [base64.b64encode(named).decode()],
                "payload_gpu_uuids": ["GPU-1"],
                "load_format": "flattened_bucket",
                "target_modules": ["transformer"],
                "weight_version": str(version),
                "weight_update_mode": "lora_merge",
                "lora_alpha": 64,
                "lora_rank": 32,
            }
            assert engine.post("update_weights_from_tensor", payload)["success"] is True

    for version in (1, 2):
        done = trainer.recipes["refit"](lambda version=version: push(version), version, lora=True)
        assert done["success"] is True
        assert generate(trainer, 1000 * version) == [str(version)] * 12
    refused = trainer.post("/update_weights_from_disk", model_path="/checkpoints/3")
    assert (refused.status_code, refused.json()["code"]) == (409, "lora_active")


# --- slime and miles, which take the router for an SGLang model gateway ---


def remove_by_id(trainer: Trainer, engine: Engine) -> None:
    """Of a gateway of 0.3 or later."""
    for worker in trainer.get("/workers")["workers"]:
        if worker["url"] == engine.url:
            worker_id = worker["id"]
            trainer.http.delete(f"{trainer.router}/workers/{worker_id}").raise_for_status()
            break
    else:
        pytest.fail("the worker is not found")


def remove_by_url(trainer: Trainer, engine: Engine) -> None:
    """Of a gateway before 0.3."""
    quoted = quote(engine.url, safe="")
    trainer.http.delete(f"{trainer.router}/workers/{quoted}").raise_for_status()


def test_engines_of_slime_and_miles(trainer: Trainer) -> None:
    (engine,) = several(1, trainer)
    for remove in (remove_by_id, remove_by_url, Trainer.shutdown):
        payload = {"url": engine.url, "worker_type": "regular"}
        trainer.http.post(f"{trainer.router}/workers", json=payload).raise_for_status()
        request = {"prompt": "a kite", "seed": 1, "width": 64, "height": 64}
        generated = trainer.post("/rollout/generate", **request, num_inference_steps=1)
        assert generated.status_code == 200
        remove(trainer, engine)
        assert trainer.get("/workers")["workers"] == []
    trainer.shutdown(engine)  # gone already: still 200, so that the engine is killed
