"""Launched through the router: a program `sglang` on PATH that notes how it is started."""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from router.launch import processes
from router.program import self_command
from router.settings import LauncherSettings
from tests.integration.deployment import Deployment, deployed, until
from tests.launchers import FREE_PORTS, restarting

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX processes")

# Notes arguments and environment, then goes on as a simulated worker on the same ports.
STUB = """\
#!{python}
import json, os, sys
folder = {folder!r}
if sys.argv[-1] == "--help":
    print("--model-path M  --strict-ports BOOL" if not os.path.exists(folder + "/old") else "-h")
    sys.exit()
flags = dict(zip(sys.argv[2::2], sys.argv[3::2]))
with open(f"{{folder}}/{{os.getpid()}}.json", "x") as file:
    json.dump({{"argv": sys.argv[1:], "flags": flags, "env": dict(os.environ),
               "pgid": os.getpgid(0), "pid": os.getpid()}}, file)
if os.path.exists(folder + "/taken"):
    os.unlink(folder + "/taken")
    sys.exit(f"RuntimeError: HTTP port {{flags['--port']}} is unavailable and --strict-ports is")
if os.path.exists(folder + "/moves"):
    os.unlink(folder + "/moves")
    argv = sys.argv
    port, there = flags["--port"], argv.index("--port") + 1
    argv[there] = str(int(port) + 42)
    print(f"Port {{port}} was unavailable, using port {{argv[there]}} instead", flush=True)
command = {command!r} + ["simulate-worker"] + sys.argv[2:]
os.execv(command[0], command + ["--time-scale", "0.01", "--load-seconds", "0", "--quiet"])
"""


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the program leaves its notes."""
    folder, programs = tmp_path / "notes", tmp_path / "bin"
    folder.mkdir()
    programs.mkdir()
    stub = programs / "sglang"
    stub.write_text(STUB.format(python=sys.executable, folder=str(folder), command=self_command()))
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,GPU-7777")
    return folder


def launcher(folder: Path, **values: Any) -> LauncherSettings:
    return LauncherSettings.of(
        {
            "model": "demo/image",
            **FREE_PORTS,
            **restarting("1ms"),
            "log_dir": str(folder.parent / "logs"),
            **values,
        }
    )


def run(launchers: list[LauncherSettings], body: Callable[[Deployment], Awaitable[None]]) -> None:
    async def main() -> None:
        with trio.fail_after(60):
            async with deployed(launchers=tuple(launchers)) as deployment:
                workers = deployment.running.parts.registry
                wanted = sum(each.num_workers for each in launchers)
                await until(lambda: [w.health for w in workers] == ["healthy"] * wanted)
                await body(deployment)

    trio.run(main)


def read(folder: Path) -> list[dict[str, Any]]:
    """All notes, by the name that the command gives the worker."""
    found = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    return sorted(found, key=lambda note: str(note["flags"].get("--served-model-name")))


def test_arguments_and_environment(notes: Path) -> None:
    image = launcher(
        notes,
        name="image",
        num_workers=2,
        worker_extra_args="--served-model-name {name}",
        worker_env={"HF_HOME": "/models", "OMP_NUM_THREADS": 2},
    )
    video = launcher(
        notes,
        name="video",
        model="demo/wan-video",
        num_gpus_per_worker=2,
        worker_extra_args=["--served-model-name", "a {name}", "--dp-size", "2"],
    )

    async def body(deployment: Deployment) -> None:
        urls = {worker.url for worker in deployment.running.parts.registry}
        seen = read(notes)
        assert urls == {f"http://127.0.0.1:{note['flags']['--port']}" for note in seen}
        ports: list[int] = []
        for note in seen:
            flags = note["flags"]
            http, master, scheduler = (
                int(flags[flag]) for flag in ("--port", "--master-port", "--scheduler-port")
            )
            copies = int(flags.get("--dp-size", "1"))
            ports += [http, http + 1, master, *range(scheduler, scheduler + copies)]
            assert note["pgid"] == note["pid"], "a process group of its own"
        assert len(ports) == len(set(ports)) == 3 * 4 + 1

    run([image, video], body)
    video_note, *image_notes = read(notes)
    assert video_note["argv"] == [
        *("serve", "--model-path", "demo/wan-video", "--num-gpus", "2", "--host", "127.0.0.1"),
        *("--port", video_note["flags"]["--port"]),
        *("--master-port", video_note["flags"]["--master-port"]),
        *("--scheduler-port", video_note["flags"]["--scheduler-port"]),
        *("--strict-ports", "true"),
        *("--served-model-name", "a video-0", "--dp-size", "2"),
    ]
    assert video_note["env"]["CUDA_VISIBLE_DEVICES"] == "6,GPU-7777"
    assert "HF_HOME" not in video_note["env"]
    for number, note in enumerate(image_notes):
        assert note["flags"]["--served-model-name"] == f"image-{number}"
        assert note["flags"]["--num-gpus"] == "1"
        assert note["env"]["CUDA_VISIBLE_DEVICES"] == str(4 + number)
        assert (note["env"]["HF_HOME"], note["env"]["OMP_NUM_THREADS"]) == ("/models", "2")


def test_an_older_worker_is_not_told_what_it_does_not_know(notes: Path) -> None:
    (notes / "old").touch()

    async def body(_: Deployment) -> None:
        (note,) = read(notes)
        assert "--strict-ports" not in note["argv"]

    run([launcher(notes)], body)


def test_a_worker_that_found_its_port_taken_gets_another(notes: Path) -> None:
    (notes / "taken").touch()

    async def body(deployment: Deployment) -> None:
        first, second = sorted(
            read(notes), key=lambda note: str(note["flags"]["--port"] in serving(deployment))
        )
        assert first["flags"]["--port"] != second["flags"]["--port"]
        assert serving(deployment) == {second["flags"]["--port"]}

    run([launcher(notes)], body)


def test_a_worker_that_moved_to_another_port_gets_a_free_one(
    notes: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As an older one does, which has no --strict-ports."""
    (notes / "old").touch()
    (notes / "moves").touch()

    async def body(deployment: Deployment) -> None:
        moved, second = sorted(
            read(notes), key=lambda note: str(note["flags"]["--port"] in serving(deployment))
        )
        assert moved["flags"]["--port"] != second["flags"]["--port"]
        assert serving(deployment) == {second["flags"]["--port"]}
        assert not processes.members(moved["pid"])
        port = moved["flags"]["--port"]
        assert f"image-0 found port {port} taken and moved to port {int(port) + 42}" in caplog.text

    run([launcher(notes)], body)


def serving(deployment: Deployment) -> set[str]:
    return {worker.url.rpartition(":")[2] for worker in deployment.running.parts.registry}


def test_a_command_of_ones_own(notes: Path) -> None:
    """A wrapper that places the values by itself."""
    script = 'port=$1 gpus=$2; shift 2; exec sglang serve --port "$port" --gpus "$gpus" "$@"'
    command = ["/bin/sh", "-c", script, "sh", "{port}", "{gpu_ids}"]

    async def body(_: Deployment) -> None:
        (note,) = read(notes)
        assert note["flags"]["--gpus"] == "4"
        assert note["argv"].count("--port") == 1
        assert note["flags"]["--model-path"] == "demo/image"

    run([launcher(notes, command=command)], body)
