"""Real SGLang diffusion workers on a CPU. Runs where requirements.txt is installed.

    python serve.py STATE NAME=PORT=MODEL_DIR... [-- FLAGS OF sglang serve]

STATE is a folder for what the workers write. The import of sglang takes ten seconds, so it is done
once and each worker is forked off it. A worker takes its port and the three above it. SIGTERM and
SIGINT are passed on; this process ends when the last worker has.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

os.environ.update(
    HF_HUB_OFFLINE="1",  # the models are folders; nothing is fetched
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
)

import torch_gaps


def main(arguments: list[str]) -> int:
    own, flags = arguments, []
    if "--" in arguments:
        at = arguments.index("--")
        own, flags = arguments[:at], arguments[at + 1 :]
    state, *workers = own
    torch_gaps.fill()
    _import_sglang()
    running = [_fork(Path(state), worker, flags) for worker in workers]

    def pass_on(number: int, _: object) -> None:
        for pid in running:
            os.kill(pid, number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    failed = 0
    while running:
        pid, status = os.wait()
        running.remove(pid)
        failed += status != 0
        print(f"worker {pid} ended with {os.waitstatus_to_exitcode(status)}", flush=True)
    return 1 if failed else 0


def _import_sglang() -> None:
    from sglang.multimodal_gen import registry
    from sglang.multimodal_gen.runtime import launch_server

    registry._ensure_registry_initialized()  # imports the pipelines, once for all workers
    fork = multiprocessing.get_context("fork")
    # It spawns its scheduler, which would import everything again.
    launch_server.mp = SimpleNamespace(get_context=lambda _=None: fork, Process=fork.Process)


def _fork(state: Path, worker: str, flags: list[str]) -> int:
    """The pid of the new worker."""
    name, port, model = worker.split("=", 2)
    pid = os.fork()
    if pid:
        print(f"worker {pid} is {name} on port {port}", flush=True)
        return pid
    _serve(state / f"worker-{port}", name, int(port), model, flags)


def _serve(state: Path, name: str, port: int, model: str, flags: list[str]) -> NoReturn:
    from sglang.multimodal_gen.runtime.entrypoints.cli import serve
    from sglang.multimodal_gen.runtime.utils.argparse import FlexibleArgumentParser

    settings: dict[str, Any] = {
        "model-path": model,
        "served-model-name": name,
        "backend": "sglang",
        "host": "127.0.0.1",
        "port": port,  # and port + 1
        "scheduler-port": port + 2,
        "master-port": port + 3,
        "warmup-mode": "off",
        "output-path": state / "outputs",
        "input-save-path": state / "uploads",
    }
    command = [f"--{flag}={value}" for flag, value in settings.items()]
    command += ["--strict-ports", "--sleep-on-idle", *flags]
    sys.argv[1:] = command  # sglang looks here as well
    status = 1
    try:
        parser = serve.add_multimodal_gen_serve_args(FlexibleArgumentParser())
        serve.execute_serve_cmd(*parser.parse_known_args(command))
        status = 0
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
