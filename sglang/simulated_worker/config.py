"""Settings of one simulated worker."""

from __future__ import annotations

from attrs import field, frozen

VERSION = "0.5.23"
"""The version of sglang that a worker claims to be."""

IMAGE_TASKS = ("T2I", "I2I", "TI2I")
VIDEO_TASKS = ("T2V", "I2V", "TI2V", "V2V", "F2V")
MESH_TASKS = ("I2M",)
ACTION_TASKS = ("VLA_ACTION",)
TASKS = (*IMAGE_TASKS, *VIDEO_TASKS, *MESH_TASKS, *ACTION_TASKS)

_WITH_IMAGES = {"I2V", "I2I", "TI2I", "TI2V", "I2M", "VLA_ACTION"}
_NEED_IMAGES = {"I2V", "I2I", "I2M"}

_GUESSES = (
    (("hunyuan3d", "mesh", "trellis"), ("I2M",)),
    (("cosmos", "openpi", "pi0", "vla"), ("VLA_ACTION",)),
    (("ti2v",), ("TI2V",)),
    (("i2v",), ("I2V",)),
    (("wan", "video", "t2v", "sora", "ltx", "mochi"), ("T2V",)),
    (("edit", "kontext"), ("TI2I",)),
)


def guess_tasks(model_path: str) -> tuple[str, ...]:
    """The tasks that a model's name suggests; text to image where it suggests nothing."""
    name = model_path.lower()
    for words, tasks in _GUESSES:
        if any(word in name for word in words):
            return tasks
    return ("T2I",)


def output_type(task: str) -> str:
    """`IMAGE`, `VIDEO`, `MESH` or `ACTION`."""
    if task in IMAGE_TASKS:
        return "IMAGE"
    if task in MESH_TASKS:
        return "MESH"
    return "ACTION" if task in ACTION_TASKS else "VIDEO"


def accepts_images(task: str) -> bool:
    return task in _WITH_IMAGES


def needs_images(task: str) -> bool:
    return task in _NEED_IMAGES


@frozen(kw_only=True)
class WorkerConfig:
    """What `sglang serve` would be told, and what only a simulation needs.

    Times are seconds and are multiplied by `time_scale`; `speed` divides those of generations.
    Port 0 picks a free pair (port, port + 1).
    """

    model_path: str = "black-forest-labs/FLUX.1-dev"
    served_model_name: str = ""
    num_gpus: int = 1
    tp_size: int = 1
    dp_size: int = 1
    host: str = "127.0.0.1"
    port: int = 0
    strict_ports: bool = False
    batching_max_size: int = 1
    enable_metrics: bool = False
    graceful_timeout: float | None = None
    lora_path: str | None = None
    task_types: tuple[str, ...] = ()
    """The first is the main one. Empty: guessed from the model path."""
    legacy_models: bool = False
    """True: `supported_task_types` is left out of the answers, as older workers do."""
    speed: float = 1.0
    time_scale: float = 1.0
    warmup_seconds: float = 0.3
    load_seconds: float = 0.5
    """How long weights take to load: before the port opens, and at each update from disk."""
    rollout_bytes: int | None = None
    """Size of each sample's `generated_output` in a rollout; None: what its shape says."""
    reserved_ports: tuple[int, ...] = field(default=())
    """Scheduler and master ports that were asked for: held, never served."""
    quiet: bool = True
    """True: no log lines on stderr."""

    @property
    def name(self) -> str:
        """The name it serves its model under; the model path, where none was given."""
        return self.served_model_name or self.model_path

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.task_types or guess_tasks(self.model_path)

    @property
    def task(self) -> str:
        return self.tasks[0]

    def makes(self, output: str) -> bool:
        """True if one of its tasks ends in this output type."""
        return any(output_type(task) == output for task in self.tasks)
