"""The loop of a trainer: rollout -> sleep -> train -> wake -> refit -> rollout, again and again.

Usage: python3 examples/rl_loop.py --router http://localhost:30081 --steps 2

Nothing but the standard library. Training is a stand-in that writes a checkpoint; a real trainer
decodes the samples, with msgpack and safetensors. How many workers there are the router knows.
Where that wants an admin key, put it into the environment variable ROUTER_ADMIN_KEY.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

TIMEOUT = 3600  # seconds
MODULE = "transformer"


def post(url: str, body: Any) -> bytes:
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("ROUTER_ADMIN_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        content: bytes = response.read()
        return content


class Trainer:
    """What has the model, the router, and the optimizer (were there one)."""

    def __init__(self, router: str, model: str, folder: Path) -> None:
        self.router = router
        self.model = model
        self.folder = folder

    def control(self, path: str, body: Any) -> Any:
        """A call to all workers of the model. Anything but 200 means: not all did it."""
        return json.loads(post(f"{self.router}{path}?model={quote(self.model, safe='')}", body))

    def rollout(self, prompts: list[str], group: int) -> list[bytes]:
        """A group of samples for each prompt, all at once: the router keeps every worker busy."""

        def one(item: tuple[int, str]) -> bytes:
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
            return post(f"{self.router}/rollout/generate", request)

        with ThreadPoolExecutor(max_workers=len(prompts)) as threads:
            return list(threads.map(one, enumerate(prompts)))

    def sleep(self) -> None:
        """The workers give the GPUs to the trainer. When this is over, all sleep."""
        self.control("/release_memory_occupation", {})

    def train(self, step: int, samples: list[bytes]) -> Path:
        """A stand-in: a checkpoint that depends on the samples."""
        checkpoint = self.folder.resolve() / f"step-{step}"  # a path of its own for each version
        (checkpoint / MODULE).mkdir(parents=True, exist_ok=True)
        learned = hashlib.sha256(b"".join(samples)).hexdigest()
        header = json.dumps({"__metadata__": {"learned": learned}}).encode()
        file = checkpoint / MODULE / "diffusion_pytorch_model.safetensors"
        file.write_bytes(len(header).to_bytes(8, "little") + header)
        return checkpoint

    def wake(self) -> None:
        self.control("/resume_memory_occupation", {})

    def refit(self, checkpoint: Path) -> str:
        """All workers load the checkpoint; the digest of what they have then."""
        change = {"model_path": str(checkpoint), "target_modules": [MODULE]}
        told = self.control("/update_weights_from_disk", change)
        if told["deferred"]:
            raise RuntimeError(f"these workers still have old weights: {told['deferred']}")
        sums = self.control("/get_weights_checksum", {"module_names": [MODULE]})
        if not sums["consistent"]:
            raise RuntimeError(f"the workers differ: {sums['results']}")
        found: str = sums["results"][0]["body"][MODULE]
        return found


def main() -> int:
    parser = argparse.ArgumentParser(description="The loop of a trainer, against the router.")
    parser.add_argument("--router", default="http://localhost:30081")
    parser.add_argument("--model", help="default: the first that the pool serves")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--group", type=int, default=2, help="samples for each prompt")
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"))
    options = parser.parse_args()
    router = options.router.rstrip("/")
    try:
        with urllib.request.urlopen(f"{router}/v1/models", timeout=30) as response:
            models = [card["id"] for card in json.load(response)["data"]]
        trainer = Trainer(router, options.model or models[0], options.checkpoints)
        prompts = [f"a kite over sea number {number}" for number in range(options.prompts)]
        for step in range(options.steps):
            samples = trainer.rollout(prompts, options.group)
            print(f"step {step}: {len(samples)} groups, {sum(map(len, samples))} bytes")
            trainer.sleep()
            checkpoint = trainer.train(step, samples)
            trainer.wake()
            print(f"step {step}: all have {trainer.refit(checkpoint)[:12]} of {checkpoint.name}")
        samples = trainer.rollout(prompts, options.group)
        print(f"the end: {len(samples)} groups of the new weights")
    except urllib.error.HTTPError as error:
        print(f"{error.code} {error.url}: {error.read().decode()}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
