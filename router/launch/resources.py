"""GPUs for workers: assigns the GPUs that were found. Looks at no hardware.

Ids are texts that CUDA_VISIBLE_DEVICES takes: an index, `GPU-<uuid>`, `MIG-<uuid>`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from enum import Enum

from attrs import define, field, frozen

from ..errors import StartError
from ..settings import LauncherSettings

CUDA = "CUDA_VISIBLE_DEVICES"
HIP = "HIP_VISIBLE_DEVICES"
ROCR = "ROCR_VISIBLE_DEVICES"


class Vendor(Enum):
    NVIDIA = "nvidia"
    AMD = "amd"


@frozen
class Gpu:
    """One GPU, or one part of a GPU (MIG) that works as one."""

    id: str
    uuid: str = ""  # another name, if known; users may abbreviate it

    def is_called(self, name: str) -> bool:
        """Whether `name` means this GPU."""
        return name == self.id or (len(name) > 4 and self.uuid.lower().startswith(name.lower()))


@frozen
class Found:
    """The GPUs of this machine that we may use. `source` follows the words "according to"."""

    gpus: tuple[Gpu, ...] = ()
    source: str = ""
    vendor: Vendor = Vendor.NVIDIA
    # Whether indices are places on the bus. CUDA by itself counts the fastest GPU first.
    by_bus: bool = False
    # The variable that hides all other GPUs here; workers must be given theirs by the same one.
    variable: str = CUDA

    def lacks(self, name: str) -> bool:
        """Whether this machine certainly has no GPU of this name. False while that is unknown: if
        no GPU was found, or for a MIG part named by its GPU and place."""
        if not self.gpus or any(gpu.is_called(name) for gpu in self.gpus):
            return False
        if name.startswith("MIG-"):
            return "/" not in name
        if any(gpu.id.startswith("MIG-") for gpu in self.gpus):
            return False  # a GPU in parts is not listed as a whole
        return name.isdigit() or all(gpu.uuid for gpu in self.gpus)

    def id_of(self, name: str) -> str:
        """The id of the GPU that `name` means; `name` itself if no known GPU has it."""
        return next((gpu.id for gpu in self.gpus if gpu.is_called(name)), name)

    def describe(self) -> str:
        """`2 GPUs (0, 1) according to NVML`, or `no GPU`."""
        if not self.gpus:
            return f"no GPU (according to {self.source})" if self.source else "no GPU"
        names = ", ".join(gpu.id for gpu in self.gpus)
        return f"{count(len(self.gpus), 'GPU')} ({names}) according to {self.source}"


def from_environment(environ: Mapping[str, str]) -> Found | None:
    """The GPUs that the environment allows us; None if it does not mention any."""
    for variable in (CUDA, HIP, ROCR):
        text = environ.get(variable)
        if text is not None:
            vendor = Vendor.NVIDIA if variable == CUDA and HIP not in environ else Vendor.AMD
            gpus = tuple(Gpu(name, _uuid(name)) for name in visible(text))
            return Found(gpus, variable, vendor, variable=variable)
    return None


def visible(text: str) -> list[str]:
    """The ids of a list like `0,2,GPU-5ee`. Like CUDA, ignores everything after an invalid id."""
    names: list[str] = []
    for part in text.split(","):
        name = part.strip()
        # Some schedulers write "NoDevFiles" or "none" for no GPU at all.
        if not re.fullmatch(r"[0-9]+|(GPU|MIG)-[\w:./-]+", name) or name in names:
            break
        names.append(name)
    return names


def _uuid(name: str) -> str:
    return "" if name.isdigit() else name


def from_nvidia_smi(text: str) -> tuple[Gpu, ...]:
    """The GPUs that `nvidia-smi -L` lists; for a GPU in parts (MIG), the parts."""
    found: list[Gpu] = []
    whole: Gpu | None = None
    for line in text.splitlines():
        uuid = re.search(r"\(UUID: ((?:GPU|MIG)-[^)\s]+)\)", line)
        head = re.match(r"GPU (\d+):", line)
        if head:
            whole = Gpu(head[1], uuid[1] if uuid else "")
            found.append(whole)
        elif uuid and uuid[1].startswith("MIG-"):
            if found and found[-1] is whole:
                found.pop()
            found.append(Gpu(uuid[1], uuid[1]))
    return tuple(found)


def from_rocm_smi(text: str) -> tuple[Gpu, ...]:
    """The GPUs that `rocm-smi --showid` lists."""
    indices = sorted({int(index) for index in re.findall(r"^GPU\[(\d+)\]", text, re.MULTILINE)})
    return tuple(Gpu(str(index)) for index in indices)


def variables(
    ids: Sequence[str], found: Found | None, environ: Mapping[str, str]
) -> dict[str, str]:
    """The variables that show a worker exactly these GPUs; without ids, none at all."""
    text = ",".join(ids)
    if found is not None and found.variable == ROCR and ids:
        return {ROCR: text}  # HIP and CUDA variables would count among the GPUs that ROCR leaves
    amd = HIP in environ or ROCR in environ or (found is not None and found.vendor is Vendor.AMD)
    # HIP obeys both, so they must agree.
    names = {CUDA: text, HIP: text} if amd else {CUDA: text}
    if found is not None and found.by_bus and any(name.isdigit() for name in ids):
        names["CUDA_DEVICE_ORDER"] = environ.get("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    return names


def by_cause(faults: Iterable[tuple[str, str | None]]) -> list[str]:
    """A sentence for each fault, with the launchers that have it."""
    found: dict[str, dict[str, None]] = {}
    for name, fault in faults:
        if fault is not None:
            found.setdefault(fault, {})[name] = None
    return [
        f"Launcher{'s' if len(names) > 1 else ''} {', '.join(names)}: {fault}"
        for fault, names in found.items()
    ]


@define(eq=False)
class GpuShares:
    """Which worker has which GPUs. No two workers share a GPU that the router chose.

    Made with all launchers, so that none takes a GPU that another names. `found` is None if no look
    was necessary, because all launchers name their GPUs or want none. `machine` has all GPUs that a
    name can mean.
    """

    launchers: Sequence[LauncherSettings]
    found: Found | None
    machine: Found = field(factory=Found)
    _shares: dict[tuple[str, int], tuple[str, ...]] = field(init=False, factory=dict)
    # The GPUs that each worker of the settings gets if they are free. Other workers get these last,
    # so that after a restart all workers find the GPUs they had.
    _first_choice: dict[tuple[str, int], tuple[str, ...]] = field(init=False)

    def __attrs_post_init__(self) -> None:
        free = [gpu.id for gpu in self._free()] if self.found is not None else []
        self._first_choice = {}
        for launcher, index in self._leave_it_to_us():
            group, free = (
                free[: launcher.num_gpus_per_worker],
                free[launcher.num_gpus_per_worker :],
            )
            if len(group) == launcher.num_gpus_per_worker:
                self._first_choice[launcher.name, index] = tuple(group)

    def faults(self) -> Iterator[str]:
        """Why some workers of the settings cannot have their GPUs."""
        yield from by_cause(
            (each.name, fault) for each in self.launchers for fault in self._misnamed(each)
        )
        for launcher, index in self._leave_it_to_us():
            if not self.cpu and (launcher.name, index) not in self._first_choice:
                yield self._too_few(launcher, index, 0)
                return

    def _misnamed(self, launcher: LauncherSettings) -> Iterator[str]:
        names = {name: None for group in launcher.worker_gpu_ids for name in group}
        if lacking := [name for name in names if self.machine.lacks(name)]:
            found = self.machine.describe()
            yield f"worker_gpu_ids names {', '.join(lacking)}; this machine has {found}"
        for group in launcher.worker_gpu_ids:
            if len({self.machine.id_of(name) for name in group}) < len(group):
                yield f"worker_gpu_ids names one GPU twice for a worker: {', '.join(group)}"

    def _leave_it_to_us(self) -> Iterator[tuple[LauncherSettings, int]]:
        for launcher in self.launchers:
            if launcher.num_gpus_per_worker and not launcher.worker_gpu_ids:
                for index in range(launcher.num_workers):
                    yield launcher, index

    @property
    def cpu(self) -> bool:
        """Whether workers run on the CPU: a launcher wants GPUs, but there are none."""
        return self.found is not None and not self.found.gpus

    def take(self, launcher: LauncherSettings, indices: Collection[int]) -> None:
        """Give each of these workers its GPUs, unless it has them. Raises StartError; then none of
        them gets any."""
        before = dict(self._shares)
        try:
            for index in sorted(indices):
                key = (launcher.name, index)
                if key not in self._shares:
                    self._shares[key] = self._choose(launcher, index)
        except StartError:
            self._shares = before
            raise

    def of(self, launcher: LauncherSettings, index: int) -> tuple[str, ...]:
        """The GPUs of one worker; none if it runs on the CPU. Raises StartError."""
        self.take(launcher, [index])
        return self._shares[launcher.name, index]

    def give_back(self, launcher: LauncherSettings, index: int) -> None:
        """The worker is gone for good."""
        self._shares.pop((launcher.name, index), None)

    def shared(self) -> dict[str, list[str]]:
        """GPUs that the settings name for several workers, with the names of these workers."""
        users: dict[str, list[str]] = {}
        for launcher in self.launchers:
            for index, group in enumerate(launcher.worker_gpu_ids[: launcher.num_workers]):
                for name in group:
                    of_it = users.setdefault(self.machine.id_of(name), [])
                    of_it.append(f"{launcher.name}-{index}")
        return {name: workers for name, workers in users.items() if len(workers) > 1}

    def _choose(self, launcher: LauncherSettings, index: int) -> tuple[str, ...]:
        wanted = launcher.num_gpus_per_worker
        if wanted == 0:
            return ()
        if launcher.worker_gpu_ids:
            if index < len(launcher.worker_gpu_ids):
                return launcher.worker_gpu_ids[index]
            raise StartError(
                f"Launcher {launcher.name}: worker_gpu_ids names GPUs for"
                f" {count(len(launcher.worker_gpu_ids), 'worker')}, but none for worker {index}"
            )
        if self.cpu:
            return ()
        free = [gpu.id for gpu in self._free()]
        first = self._first_choice.get((launcher.name, index), ())
        if first and set(first) <= set(free):
            return first
        if len(free) < wanted:
            raise StartError(self._too_few(launcher, index, len(free)))
        chosen_first = {name for group in self._first_choice.values() for name in group}
        free.sort(key=lambda name: name in chosen_first)  # stable: keeps the order otherwise
        return tuple(free[:wanted])

    def _free(self) -> list[Gpu]:
        assert self.found is not None, (
            "made without looking, though a launcher leaves its GPUs to the router"
        )
        taken = {name for group in self._shares.values() for name in group}
        for launcher in self.launchers:
            # All GPUs that it names, even for workers that may be added later.
            taken.update(name for group in launcher.worker_gpu_ids for name in group)
        return [gpu for gpu in self.found.gpus if not any(map(gpu.is_called, taken))]

    def _too_few(self, launcher: LauncherSettings, index: int, free: int) -> str:
        assert self.found is not None
        if index >= launcher.num_workers:
            return (
                f"Launcher {launcher.name}: worker {index} needs"
                f" {count(launcher.num_gpus_per_worker, 'GPU')}, but {free or 'none'}"
                f" {'is' if free == 1 else 'are'} free; this machine has {self.found.describe()}"
            )
        chosen, named = (
            sum(
                each.num_workers * each.num_gpus_per_worker
                for each in self.launchers
                if bool(each.worker_gpu_ids) is by_name
            )
            for by_name in (False, True)
        )
        beside = f" in addition to the {named} in worker_gpu_ids" if named else ""
        need = "launchers need" if len(self.launchers) > 1 else "launcher needs"
        return (
            f"The {need} {count(chosen, 'GPU')}{beside}; this machine has {self.found.describe()};"
            " reduce num_workers, or set num_gpus_per_worker to 0 to run workers without GPUs"
        )


def count(number: int, thing: str) -> str:
    """`1 GPU`, `2 GPUs`."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
