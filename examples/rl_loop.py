"""The loop of a trainer: rollout -> sleep -> train -> wake -> refit -> rollout, again and again.

Usage: python3 examples/rl_loop.py --router http://localhost:30081 --steps 2

Nothing but the standard library. Training is a stand-in that writes a checkpoint; a real trainer
decodes the samples, with msgpack and safetensors. How many workers there are the router knows.
Where that wants an admin key, put it into the environment variable ROUTER_ADMIN_KEY.
docs/rl.md says what the router guarantees, and what it does when something breaks.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

TIMEOUT = 3600  # seconds
MODULE = "transformer"
TRIES, PAUSE = 5, 2.0  # of a group whose worker fails, and the seconds between


class Sample(NamedTuple):
    """A group of samples as it came: msgpack. `version`: of the weights that made it."""

    content: bytes
    version: int
    worker: str


def post(url: str, body: Any, **headers: str) -> Any:
    """The answer, read; its `headers` are still there."""
    headers["Content-Type"] = "application/json"
    if key := os.environ.get("ROUTER_ADMIN_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        return response.read(), response.headers


class Trainer:
    """What has the model, the router, and the optimizer (were there one)."""

    def __init__(self, router: str, model: str, folder: Path) -> None:
        self.router = router
        self.model = model
        self.folder = folder
        self.version = 0  # of the last refit: what samples must be of

    def control(self, path: str, body: Any) -> Any:
        """A call to all workers of the model. Anything but 200 means: not all did it."""
        url = f"{self.router}{path}?model={quote(self.model, safe='')}"
        return json.loads(post(url, body)[0])

    def rollout(self, prompts: list[str], group: int) -> list[Sample]:
        """A group of samples for each prompt, all at once: the router keeps every worker busy."""

        def one(item: tuple[int, str]) -> Sample:
            number, prompt = item
            request = {
                "model": self.model,
                "prompt": prompt,
                "seed": 1000 * number,  # of the first sample; the others count on from it
                "num_outputs_per_prompt": group,
                "width": 64,
                "height": 64,
                "num_inference_steps": 4,
                "rollout": True,
            }
            return self.group(request)

        with ThreadPoolExecutor(max_workers=len(prompts)) as threads:
            samples = list(threads.map(one, enumerate(prompts)))
        versions = {sample.version for sample in samples}
        if len(versions) > 1:
            raise RuntimeError(f"somebody else changed the weights meanwhile: {sorted(versions)}")
        return samples

    def group(self, request: Any) -> Sample:
        """One group. A worker may die over it: the same seeds give the same samples elsewhere."""
        for _ in range(TRIES):
            try:
                # It never waits for more than there is: the version was issued by the refit.
                wanted = {"X-Min-Weight-Version": str(self.version)}
                content, headers = post(f"{self.router}/rollout/generate", request, **wanted)
            except urllib.error.HTTPError as error:
                if error.code not in (502, 503, 504):
                    raise
                failure = error
                time.sleep(PAUSE)
            else:
                return Sample(content, int(headers["X-Weight-Version"]), headers["X-Worker-Id"])
        raise failure

    def sleep(self) -> int:
        """The workers give the GPUs to the trainer, once they have finished what they had."""
        return len(self.control("/release_memory_occupation", {})["results"])

    def train(self, step: int, samples: list[Sample]) -> Path:
        """A stand-in: a checkpoint that depends on the samples."""
        checkpoint = self.folder.resolve() / f"step-{step}"  # a path of its own for each version
        (checkpoint / MODULE).mkdir(parents=True, exist_ok=True)
        learned = hashlib.sha256(b"".join(sample.content for sample in samples)).hexdigest()
        header = json.dumps({"__metadata__": {"learned": learned}}).encode()
        file = checkpoint / MODULE / "diffusion_pytorch_model.safetensors"
        file.write_bytes(len(header).to_bytes(8, "little") + header)
        return checkpoint

    def wake(self) -> int:
        """The workers take the GPUs again."""
        return len(self.control("/resume_memory_occupation", {})["results"])

    def refit(self, checkpoint: Path) -> tuple[int, int]:
        """All workers load the checkpoint: how many have, and how many are to follow. Those get it
        from the router before they get any request."""
        change = {"model_path": str(checkpoint), "target_modules": [MODULE]}
        told = self.control("/update_weights_from_disk", change)
        if told.get("pending"):
            raise RuntimeError("all workers sleep: the change waits until one is woken")
        self.version = told["weight_version"]
        return len(told["results"]), len(told["deferred"])

    def checksum(self) -> str:
        """What all workers have, and that it is the same. Slow: it blocks them."""
        sums = self.control("/get_weights_checksum", {"module_names": [MODULE]})
        if not sums["consistent"]:
            raise RuntimeError(f"the workers differ: {sums['results']}")
        found: str = sums["results"][0]["body"][MODULE]
        return found


def tell(step: str, samples: list[Sample]) -> None:
    size, workers = sum(len(s.content) for s in samples), {s.worker for s in samples}
    print(
        f"{step}: rollout: {len(samples)} groups of weight version {samples[0].version}, "
        f"{size} bytes, by {len(workers)} workers"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="The loop of a trainer, against the router.")
    parser.add_argument("--router", default="http://localhost:30081")
    parser.add_argument("--model", help="default: the first that the pool serves")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--group", type=int, default=2, help="samples for each prompt")
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"))
    parser.add_argument("--verify", action="store_true", help="compare checksums after each refit")
    options = parser.parse_args()
    router = options.router.rstrip("/")
    try:
        with urllib.request.urlopen(f"{router}/v1/models", timeout=30) as response:
            models = [card["id"] for card in json.load(response)["data"]]
        trainer = Trainer(router, options.model or models[0], options.checkpoints)
        prompts = [f"a kite over sea number {number}" for number in range(options.prompts)]
        for number in range(options.steps):
            step = f"step {number}"
            samples = trainer.rollout(prompts, options.group)
            tell(step, samples)
            print(f"{step}: sleep: {trainer.sleep()} workers gave their GPU memory back")
            checkpoint = trainer.train(number, samples)
            print(f"{step}: train: {checkpoint.name}")
            print(f"{step}: wake: {trainer.wake()} workers are awake")
            done, to_follow = trainer.refit(checkpoint)
            version = f"weight version {trainer.version}"
            print(f"{step}: refit: {version} on {done} workers, {to_follow} to follow")
            if options.verify:
                print(f"{step}: verify: all have {trainer.checksum()[:12]}")
        samples = trainer.rollout(prompts, options.group)
        tell("the end", samples)
        if options.steps and samples[0].version != trainer.version:
            raise RuntimeError(f"these are not of version {trainer.version}")
    except urllib.error.HTTPError as error:
        print(f"{error.code} {error.url}: {error.read().decode()}", file=sys.stderr)
        return 1
    except urllib.error.URLError as error:
        print(f"{router} could not be reached: {error.reason}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
