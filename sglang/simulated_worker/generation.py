"""From the fields of a request to the work that answers it."""

from __future__ import annotations

import math
import random
import re
import uuid
from typing import Any

from attrs import frozen

from .config import accepts_images, needs_images, output_type
from .cost import Shape
from .exchange import Exchange
from .messages import detail
from .pictures import Recipe
from .scheduler import Work
from .state import State

MOST_OUTPUTS = 10
LARGEST_SIDE = 8192
MOST_FRAMES = 20_000
_LOGGED_PROMPT = 200
_DEFAULT_SIZE = {"IMAGE": (1024, 1024), "VIDEO": (832, 480), "MESH": (512, 512)}
_DEFAULT_STEPS = {"IMAGE": 28, "VIDEO": 50, "MESH": 50, "ACTION": 10}


@frozen
class Plan:
    """A generation that was accepted: what it costs and what its pictures follow from."""

    id: str
    shape: Shape
    outputs: int
    prompt: str
    seeds: tuple[int, ...]
    inputs: str = ""

    def recipes(self, work: Work) -> list[Recipe]:
        """One for each output, with the weights that the work ran with."""
        return [
            Recipe(
                work.entry.weights,
                work.entry.lora,
                self.prompt,
                seed,
                self.shape.width,
                self.shape.height,
                self.shape.steps,
                self.inputs,
            )
            for seed in self.seeds
        ]


def plan(
    state: State,
    values: dict[str, Any],
    output: str,
    *,
    frames: int = 1,
    inputs: str = "",
    checked: bool = True,
    most_outputs: int = MOST_OUTPUTS,
) -> Plan:
    """Raises a 400 `Refusal` where the real worker answers one; `checked`: also for the task.
    `most_outputs`: as many as the endpoint makes."""
    if checked:
        chosen_task(state, values.get("task_type"), output, with_input=bool(inputs))
    width, height = size_of(values, output)
    steps = values.get("num_inference_steps")
    outputs = values.get("num_outputs_per_prompt") or values.get("n") or 1
    for name, value, most in (
        ("width", width, LARGEST_SIDE),
        ("height", height, LARGEST_SIDE),
        ("num_frames", frames, MOST_FRAMES),
        ("num_inference_steps", steps, math.inf),
    ):
        if value is not None and value <= 0:
            raise detail(400, f"{name} must be positive")
        if value is not None and value > most:
            raise detail(400, f"{name} must be at most {most}, as a simulation draws no more")
    outputs = max(1, min(int(outputs), most_outputs))
    return Plan(
        str(uuid.uuid4()),
        Shape(output, width, height, steps or _DEFAULT_STEPS[output], frames),
        outputs,
        values.get("prompt") or "",
        _seeds(values.get("seed"), outputs),
        inputs,
    )


def submit(state: State, kind: str, made: Plan, exchange: Exchange) -> Work:
    """Queues the generation and returns at once."""
    return state.scheduler.submit_generation(
        kind,
        made.id,
        made.shape,
        made.outputs,
        request_id=exchange.entry.request_id,
        prompt=made.prompt[:_LOGGED_PROMPT],
        seeds=list(made.seeds),
        size=f"{made.shape.width}x{made.shape.height}",
        steps=made.shape.steps,
        frames=made.shape.frames,
    )


def chosen_task(state: State, asked: Any, output: str, *, with_input: bool) -> str:
    """The task that a request asks for. Raises a 400 `Refusal` if this worker has none such."""
    have = list(state.config.tasks)
    if asked is not None:
        task = str(asked).strip().upper()
        if task not in have:
            raise detail(400, f"Unsupported task_type {task}; this pipeline supports {have}")
        fitting = [task]
    else:
        fitting = [task for task in have if output_type(task) == output]
    if not fitting or output_type(fitting[0]) != output:
        raise detail(
            400, f"This pipeline does not support {output} output; supported task types: {have}"
        )
    if with_input:
        taking = [t for t in fitting if accepts_images(t) or t in ("V2V", "F2V")]
        if not taking:
            raise detail(400, f"input_reference is not supported for {fitting[0]} models.")
        return taking[0]
    if all(needs_images(task) for task in fitting) and output != "MESH":
        raise detail(400, f"image_path is required for {fitting[0]} models.")
    return fitting[0]


def size_of(values: dict[str, Any], output: str) -> tuple[int, int]:
    """Width and height: the fields of that name, else `size`, else the default."""
    width, height = values.get("width"), values.get("height")
    if size := values.get("size"):
        match = re.fullmatch(r"\s*(\d+)\s*[xX*]\s*(\d+)\s*", str(size))
        if match is None or not (int(match[1]) and int(match[2])):
            raise detail(400, "size must be formatted as positive WIDTHxHEIGHT")
        width = int(match[1]) if width is None else width
        height = int(match[2]) if height is None else height
    default = _DEFAULT_SIZE.get(output, (512, 512))
    return (default[0] if width is None else width, default[1] if height is None else height)


def _seeds(seed: Any, outputs: int) -> tuple[int, ...]:
    if isinstance(seed, list) and seed:
        return tuple(seed[i] if i < len(seed) else seed[-1] + i for i in range(outputs))
    first = random.randrange(2**31) if not isinstance(seed, int) else seed
    return tuple(first + i for i in range(outputs))
