"""The Python of docs/rl.md and docs/rl-recipes.md, from top to bottom, against two workers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.e2e.processes import ask, process, router, wait_until_ready

DOCS = Path(__file__).parents[2] / "docs"
WITHIN = 120.0
WORKER = ("--model-path", "demo/image", "--port", "0", "--time-scale", "0")
# What a trainer has of its own.
TRAINER = """
def train(number, groups):
    return f"/checkpoints/step-{number}"

def buckets_for(worker):
    return ["eyJhIjogIjEifQ==", "eyJiIjogIjIifQ=="]
"""
# Functions of the recipes that the replays of tests/e2e/test_trainers.py do not call.
USE = """
samples, version = sample("a sign", 5000)
kind, shape, _ = tensor(samples[23]["dit_trajectory"]["latents"])
assert (len(samples), shape[0]) == (24, 11)
assert tensor(samples[0]["dit_trajectory"]["timesteps"])[1] == [11]
assert tensor(samples[0]["generated_output"])[:2] == ("BF16", [3, 512, 512])
assert refit_lora(1, "/lora/epoch-1") == version + 1
print("all of it has run")
"""


def python_of(page: str) -> list[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)


def test_the_python_of_the_pages(router_pyz: Path, tmp_path: Path) -> None:
    blocks = [TRAINER, *python_of("rl.md"), *python_of("rl-recipes.md"), USE]
    logs = [tmp_path / f"{name}.log" for name in ("first", "second", "router")]
    serving, command = r"serving .* on (http://\S+)", [router_pyz, "simulate-worker", *WORKER]
    with (
        process(logs[0], serving, *command) as first,
        process(logs[1], serving, *command) as second,
        router(router_pyz, logs[2], "--state-dir", "none", "--worker-urls", first, second) as url,
    ):
        wait_until_ready(url)
        program = "\n".join(blocks).replace("http://localhost:30081", url)
        assert "localhost" not in program
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")},
            capture_output=True,
            text=True,
            timeout=WITHIN,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == "all of it has run\n"
        models = ask("GET", f"{url}/weights")["models"]
        assert [model["weight_version"] for model in models] == [8]
