"""A worker that behaves like SGLang's diffusion server, without a model or a GPU.

Start one:

    python -m simulated_worker --model-path black-forest-labs/FLUX.1-dev --port 30000

`--help` explains the flags: those of `sglang serve` (unknown ones are accepted and said once), and
those of the simulation: `--speed`, `--time-scale`, `--warmup-seconds`, `--load-seconds`,
`--task-type`, `--supported-task-types`, `--rollout-bytes`. It takes the port and the one above it.
The model path is a name: what it makes follows from it (`wan` or `video`: videos, `hunyuan3d` or
`mesh`: meshes, `edit`: edits, else images) and so do the weights; which paths are refused is said
in `weights.py`.

In a test, within the caller's nursery:

    worker = await nursery.start(serve, WorkerConfig(model_path="m/0", time_scale=0.01))
    worker.url, worker.log, worker.faults, worker.scheduler
    worker.stop()    # as SIGTERM
    worker.kill()    # as SIGKILL: connections reset, port refused

What it made tells who made it: `pictures.expected_image(weights.identity_of("m/0"), prompt, seed,
width=..., height=..., steps=...)` equals a worker's PNG byte for byte, `pictures.made_by(png)`
reads the weights out of one. Videos and meshes follow in the same way from weights and request.

`GET /simulate/log` (or `worker.log`) has an entry for each generation and control call, with
`queued`, `start` and `end` in monotonic seconds, the weights and LoRA that it ran with, the copy,
the batch and the X-Request-Id; and one for each request, with its headers, the size and SHA-256 of
its body, the status, and when its client was seen to leave; and the counts of connections.
`GET /simulate` tells the state (weights, asleep, queue) and lists the faults; `POST /simulate`
with `{"fault": NAME, ...}` adds one. They are, with their parameters (see `faults.CATALOGUE`):

    refuse, hang, drop, garbage, status, delay, slow_health, slow, drip, die_at_byte,
    fail_next_update, fail_next_generation, warming, kill_scheduler, restart, crash, clear

The control port, one above the worker's, takes the same requests and is never closed by a fault.

Where it differs from the real worker on purpose: images are always PNG; videos are at most 320
pixels along; files are made when they are asked for and `file_path` names no file; every video
model can do realtime video; durations come from a cost model (`cost.py`); there is no `/docs`.
"""

from .config import WorkerConfig
from .faults import Fault, FaultError, Faults
from .record import Record, RequestEntry, WorkEntry
from .worker import SimulatedWorker, serve

__all__ = [
    "Fault",
    "FaultError",
    "Faults",
    "Record",
    "RequestEntry",
    "SimulatedWorker",
    "WorkEntry",
    "WorkerConfig",
    "serve",
]
