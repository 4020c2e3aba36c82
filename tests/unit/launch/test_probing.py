"""Looking at the machine: with stand-ins for its tools, and no library of NVIDIA's."""

from __future__ import annotations

import os
import shlex
import stat
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio
import trio.testing
from attrs import define, field

from router.launch import probing
from router.launch.probing import find_gpus, knows_flag
from router.launch.resources import Found, Gpu

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="shell scripts")

T = TypeVar("T")


def in_trio(ask: Callable[[], Awaitable[T]]) -> T:
    async def main() -> T:
        with trio.fail_after(30):
            return await ask()

    return trio.run(main)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one folder of the path; no library."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(probing, "nvml_gpus", tuple)
    return tmp_path


def script(path: Path, code: str) -> Path:
    path.write_text(f"#!/bin/sh\n{code}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def prints(text: str) -> str:
    return f"printf %s {shlex.quote(text)}"


def test_the_environment_is_believed_unasked(tools: Path) -> None:
    said = in_trio(lambda: find_gpus({"CUDA_VISIBLE_DEVICES": "5"}))
    assert said.gpus == (Gpu("5"),)


def test_nvml_comes_first(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "nvml_gpus", lambda: (Gpu("0", "GPU-1"),))
    script(tools / "nvidia-smi", "exit 1")
    said = in_trio(lambda: find_gpus({}))
    assert (said.gpus, said.source, said.by_bus) == ((Gpu("0", "GPU-1"),), "NVML", True)


def test_a_stuck_driver_does_not_hold_us(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def stuck(*_: object, **__: object) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(trio.to_thread, "run_sync", stuck)
    clock = trio.testing.MockClock(autojump_threshold=0)
    assert trio.run(find_gpus, {}, clock=clock).gpus == ()


def test_nvidia_smi_is_asked_next(tools: Path) -> None:
    script(tools / "nvidia-smi", '[ "$*" = -L ] && echo "GPU 0: NVIDIA H100 (UUID: GPU-ab)"')
    said = in_trio(lambda: find_gpus({}))
    assert (said.gpus, said.source, said.by_bus) == ((Gpu("0", "GPU-ab"),), "nvidia-smi", True)


def test_a_failing_nvidia_smi_is_told_and_rocm_smi_asked(
    tools: Path, caplog: pytest.LogCaptureFixture
) -> None:
    script(tools / "nvidia-smi", "echo 'GPU 0: x (driver mismatch)' >&2; exit 9")
    script(tools / "rocm-smi", '[ "$*" = --showid ] && ' + prints("GPU[0]\t\t: Device ID: 0x1\n"))
    said = in_trio(lambda: find_gpus({}))
    assert ([gpu.id for gpu in said.gpus], said.source) == (["0"], "rocm-smi")
    assert "nvidia-smi ended with status 9: GPU 0: x (driver mismatch)" in caplog.text


def test_nothing_is_found(tools: Path) -> None:
    assert in_trio(lambda: find_gpus({})) == Found(source="NVML, nvidia-smi and rocm-smi")


def test_no_library_is_no_error() -> None:
    for gpu in probing.nvml_gpus():  # on a machine that has one
        assert gpu.id


def asked(command: list[str]) -> bool:
    return in_trio(lambda: knows_flag(command, "--strict-ports", dict(os.environ)))


@pytest.mark.parametrize(
    ("text", "knows"),
    [
        ("usage: serve [--strict-ports {true,false}]\n  --strict-ports X  fail", True),
        ("  --strict-ports=BOOL", True),
        ("  -s, --strict-ports, --strict  x", True),
        ("  --no-strict-ports", False),
        ("  --strict-ports-now", False),
        ("", False),
    ],
)
def test_whether_a_command_tells_of_a_flag(tmp_path: Path, text: str, knows: bool) -> None:
    serve = script(tmp_path / "serve", f'[ "$1" = --help ] && {prints(text)}')
    assert asked([str(serve), "--help"]) is knows


def test_a_command_that_cannot_show_its_help(tmp_path: Path) -> None:
    failing = script(tmp_path / "serve", "echo --strict-ports; exit 2")
    assert asked([str(failing)]) is False
    assert asked([str(tmp_path / "missing")]) is False


def test_a_command_that_serves_instead_is_ended(tmp_path: Path) -> None:
    """With all it has started; here its child keeps the output open."""
    pids = tmp_path / "pids"
    serve = script(tmp_path / "serve", f'sleep 600 & echo $$ $! > "{pids}"; wait')
    clock = trio.testing.MockClock()

    async def main() -> bool:
        async with trio.open_nursery() as nursery:

            async def pass_the_time() -> None:
                await trio.to_thread.run_sync(
                    until, lambda: pids.exists() and pids.read_text().endswith("\n")
                )
                while True:  # the command may have begun before its time was bounded
                    clock.jump(probing.HELP_WITHIN)
                    await trio.to_thread.run_sync(time.sleep, 0.01)

            nursery.start_soon(pass_the_time)
            answer = await knows_flag([str(serve)], "--strict-ports", dict(os.environ))
            nursery.cancel_scope.cancel()
            return answer

    assert trio.run(main, clock=clock) is False
    until(lambda: all(map(gone, pids.read_text().split())))


def until(condition: Callable[[], bool]) -> None:
    """Wait in real time."""
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it never came true")


def gone(pid: str) -> bool:
    """Ended, though perhaps not yet reaped by whoever inherited it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@define
class Library:
    """As libnvidia-ml answers: a GPU, one in two parts (MIG), and one that has gone."""

    calls: list[str] = field(factory=list)
    init: int = 0
    old: bool = False

    def __getattr__(self, name: str) -> Callable[..., int]:
        if self.old and "Mig" in name:
            raise AttributeError(name)

        def call(*arguments: Any) -> int:
            self.calls.append(name)
            return int(getattr(Answers, name)(self, *arguments))

        return call


class Answers:
    def nvmlInit_v2(self: Library) -> int:
        return self.init

    def nvmlShutdown(self: Library) -> int:
        return 0

    def nvmlDeviceGetCount_v2(self: Library, count: Any) -> int:
        count._obj.value = 3
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self: Library, index: int, device: Any) -> int:
        device._obj.value = 100 + index
        return 15 if index == 2 else 0  # NVML_ERROR_GPU_IS_LOST

    def nvmlDeviceGetMigMode(self: Library, device: Any, mode: Any, pending: Any) -> int:
        mode._obj.value = int(device.value == 101)
        return 3 if device.value == 100 else 0  # NVML_ERROR_NOT_SUPPORTED

    def nvmlDeviceGetMaxMigDeviceCount(self: Library, device: Any, count: Any) -> int:
        count._obj.value = 7
        return 0

    def nvmlDeviceGetMigDeviceHandleByIndex(
        self: Library, device: Any, index: int, part: Any
    ) -> int:
        part._obj.value = 1000 + index
        return 0 if index in (0, 3) else 6  # NVML_ERROR_NOT_FOUND

    def nvmlDeviceGetUUID(self: Library, device: Any, text: Any, size: Any) -> int:
        kind = "GPU" if device.value < 1000 else "MIG"
        text.value = f"{kind}-{device.value}".encode()
        assert size.value == len(text)
        return 0


def library(monkeypatch: pytest.MonkeyPatch, **how: Any) -> Library:
    made = Library(**how)
    monkeypatch.setattr(probing.ctypes, "CDLL", lambda _: made)
    return made


def test_what_nvml_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = library(monkeypatch)
    assert probing.nvml_gpus() == (
        Gpu("0", "GPU-100"),
        Gpu("MIG-1000", "MIG-1000"),
        Gpu("MIG-1003", "MIG-1003"),
    )
    assert (fake.calls[0], fake.calls[-1]) == ("nvmlInit_v2", "nvmlShutdown")


def test_a_library_from_before_mig(monkeypatch: pytest.MonkeyPatch) -> None:
    library(monkeypatch, old=True)
    assert [gpu.id for gpu in probing.nvml_gpus()] == ["0", "1"]


def test_a_library_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = library(monkeypatch, init=9)  # NVML_ERROR_DRIVER_NOT_LOADED
    assert probing.nvml_gpus() == ()
    assert fake.calls == ["nvmlInit_v2"]
