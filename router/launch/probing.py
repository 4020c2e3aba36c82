"""Probes this machine: which GPUs it has, and which flags a worker's command knows."""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import trio

from ..errors import describe
from .masking import masked
from .resources import Found, Gpu, Vendor, from_environment, from_nvidia_smi, from_rocm_smi

logger = logging.getLogger("router.launch")

_NVML_WITHIN = 30.0  # seconds; without the persistence daemon each look loads the driver
_TOOL_WITHIN = 30.0
HELP_WITHIN = 60.0
"""Seconds for a worker's command to answer --help: some commands import all of torch for it."""
_MOST_HELP = 4 * 1024 * 1024  # bytes


async def find_gpus(environ: Mapping[str, str] = os.environ) -> Found:
    """The GPUs that we may use: those of the environment, else those of the machine.

    Asks NVML, then `nvidia-smi`, then `rocm-smi`; none imports torch. Finding none is no error.
    """
    said = from_environment(environ)
    if said is not None:
        return said
    gpus: tuple[Gpu, ...] = ()
    with trio.move_on_after(_NVML_WITHIN):
        # Abandoned if it hangs, as it does with a stuck driver.
        gpus = await trio.to_thread.run_sync(nvml_gpus, abandon_on_cancel=True)
    if gpus:
        return Found(gpus, "NVML", Vendor.NVIDIA, by_bus=True)
    gpus = from_nvidia_smi(await _output(["nvidia-smi", "-L"]))
    if gpus:
        return Found(gpus, "nvidia-smi", Vendor.NVIDIA, by_bus=True)
    gpus = from_rocm_smi(await _output(["rocm-smi", "--showid"]))
    if gpus:
        return Found(gpus, "rocm-smi", Vendor.AMD)
    return Found(source="NVML, nvidia-smi and rocm-smi")


async def _output(command: list[str]) -> str:
    """The output of a tool; empty if there is no such tool, or it fails."""
    if shutil.which(command[0]) is None:
        return ""
    text, status = await _run(command, None, _TOOL_WITHIN)
    if status != 0:
        logger.warning("%s ended with status %s: %s", command[0], status, text.strip()[-200:])
        return ""
    return text


async def knows_flag(command: Sequence[str], flag: str, env: Mapping[str, str]) -> bool:
    """Whether the help output of a command mentions a flag; False if the command fails. `env` is
    the command's whole environment. Bounded in time and bytes; no process of the command is left
    running."""
    try:
        text, status = await _run(command, env, HELP_WITHIN)
    except OSError as error:
        logger.debug("cannot run %s: %s", command[0], describe(error))
        return False
    if status != 0:
        logger.debug("%s ended with status %s", " ".join(masked(command)), status)
    return status == 0 and flag in text.replace(",", " ").replace("=", " ").split()


async def _run(
    command: Sequence[str], env: Mapping[str, str] | None, within: float
) -> tuple[str, int | None]:
    """The output and the status of a command; None if it took too long. Raises OSError."""
    process = await trio.lowlevel.open_process(
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=None if env is None else dict(env),
        start_new_session=sys.platform != "win32",
    )
    collected = bytearray()
    status: int | None = None
    try:
        assert process.stdout is not None
        with trio.move_on_after(within):
            async for chunk in process.stdout:
                collected += chunk[: _MOST_HELP - len(collected)]
            status = await process.wait()
    finally:
        with trio.CancelScope(shield=True):
            # Even after its end: processes that it started must not outlive it.
            _kill(process)
            await process.wait()
            if process.stdout is not None:
                await process.stdout.aclose()
    return collected.decode(errors="replace"), status


def _kill(process: trio.Process) -> None:
    try:
        if sys.platform != "win32":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    except (ProcessLookupError, PermissionError):
        pass  # already gone


def nvml_gpus() -> tuple[Gpu, ...]:
    """The GPUs that NVIDIA's library reports, or their parts (MIG); none without the library.

    Takes up to seconds: not for the event loop.
    """
    try:
        library = ctypes.CDLL("nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1")
    except OSError:
        return ()
    with _nvml(library) as works:
        return tuple(_devices(library)) if works else ()


@contextmanager
def _nvml(library: ctypes.CDLL) -> Iterator[bool]:
    """Whether NVML works; shuts NVML down afterwards."""
    status = library.nvmlInit_v2()
    if status != 0:
        logger.debug("nvmlInit failed with status %d", status)
        yield False
        return
    try:
        yield True
    finally:
        library.nvmlShutdown()


def _devices(library: ctypes.CDLL) -> Iterator[Gpu]:
    total = ctypes.c_uint()
    if library.nvmlDeviceGetCount_v2(ctypes.byref(total)) != 0:
        return
    for index in range(total.value):
        device = ctypes.c_void_p()
        if library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)) != 0:
            continue  # fallen off the bus, or not ours
        if _is_in_parts(library, device):
            yield from _parts(library, device)
        else:
            yield Gpu(str(index), _uuid(library, device))


def _is_in_parts(library: ctypes.CDLL, device: ctypes.c_void_p) -> bool:
    """Whether MIG is on; then the GPU cannot be used as a whole."""
    mode, pending = ctypes.c_uint(), ctypes.c_uint()
    try:
        status = library.nvmlDeviceGetMigMode(device, ctypes.byref(mode), ctypes.byref(pending))
    except AttributeError:
        return False  # the library predates MIG
    return status == 0 and mode.value == 1


def _parts(library: ctypes.CDLL, device: ctypes.c_void_p) -> Iterator[Gpu]:
    most = ctypes.c_uint()
    if library.nvmlDeviceGetMaxMigDeviceCount(device, ctypes.byref(most)) != 0:
        return
    for place in range(most.value):
        part = ctypes.c_void_p()
        found = library.nvmlDeviceGetMigDeviceHandleByIndex(device, place, ctypes.byref(part))
        uuid = _uuid(library, part) if found == 0 else ""
        if uuid:
            yield Gpu(uuid, uuid)


def _uuid(library: ctypes.CDLL, device: ctypes.c_void_p) -> str:
    text = ctypes.create_string_buffer(96)
    if library.nvmlDeviceGetUUID(device, text, ctypes.c_uint(len(text))) != 0:
        return ""
    return text.value.decode("ascii", errors="replace")
