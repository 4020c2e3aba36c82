"""Planners: what they find out, once, and what they share."""

from __future__ import annotations

import logging
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from router.errors import StartError
from router.launch import probing
from router.launch.base import Planner, WorkerPorts
from router.launch.planner import LocalPlanner, make_planners
from router.launch.ports import ports_of
from router.launch.resources import Found, Gpu
from router.settings import LauncherSettings
from tests.unit.launch.settings import launcher

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="shell scripts")

ANY_PORTS = {"worker_base_port": 0, "master_port_base": 0, "scheduler_port_base": 0}
HERE = {"command": "/bin/sh", **ANY_PORTS}


def planning(
    launchers: list[LauncherSettings],
    body: Callable[[list[LocalPlanner]], Awaitable[None]],
    environ: dict[str, str],
    *,
    alive: bool = False,
) -> None:
    async def main() -> None:
        with trio.fail_after(30):
            await body(await make_planners(launchers, environ, alive=alive))

    trio.run(main)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many GPUs the machine has, and then how often that was asked."""
    counts = [0, 0]

    async def find(_: object) -> Found:
        counts[1] += 1
        return Found(tuple(Gpu(str(n)) for n in range(counts[0])), "NVML")

    monkeypatch.setattr(probing, "find_gpus", find)
    return counts


def sglang(folder: Path, text: str) -> dict[str, str]:
    """An environment with a program `sglang` that notes how it is asked for help."""
    stub = folder / "sglang"
    stub.write_text(f'#!/bin/sh\necho "$*" >> "{folder}/asked"\necho "{text}"\n')
    stub.chmod(0o755)
    return {"PATH": f"{folder}:/usr/bin:/bin"}


def test_what_two_launchers_share(tmp_path: Path, gpus: list[int]) -> None:
    gpus[0] = 4

    async def body(planners: list[LocalPlanner]) -> None:
        plans = []
        async with trio.open_nursery() as nursery:
            for planner in planners:
                nursery.start_soon(planner.learn)
        for planner in planners:
            conforming: Planner = planner
            for index in range(2):
                held = conforming.reserve(index)
                plan = conforming.plan(index, held.ports)
                assert plan == conforming.plan(index, held.ports)
                plans.append(plan)
                held.unbind()
        assert [plan.env["CUDA_VISIBLE_DEVICES"] for plan in plans] == ["0", "1", "2", "3"]
        assert all(plan.command[-2:] == ("--strict-ports", "true") for plan in plans)
        ports = [port for plan in plans for port in ports_of(plan.ports)]
        assert len(set(ports)) == 16

    both = [launcher(num_workers=2), launcher(name="b", num_workers=2)]
    planning(both, body, sglang(tmp_path, "  --strict-ports X"))
    assert (tmp_path / "asked").read_text() == "serve --help\n", "each command is asked once"
    assert gpus[1] == 1


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("usage", {}),
        ("--strict-ports", {"worker_extra_args": "--strict-ports false"}),
    ],
)
def test_a_worker_without_strict_ports(
    tmp_path: Path, gpus: list[int], text: str, values: dict[str, str]
) -> None:
    async def body(planners: list[LocalPlanner]) -> None:
        (planner,) = planners
        await planner.learn()
        held = planner.reserve(0)
        command = planner.plan(0, held.ports).command
        held.give_back()
        assert command.count("--strict-ports") == len(values)

    planning([launcher(**ANY_PORTS, **values)], body, sglang(tmp_path, text))


ABSENT = [
    "Launchers Qwen-Image, a: the program sglang is not on PATH; install SGLang, or set command",
    "Launcher b: the program ./serve cannot be found or executed",
]


def absent() -> list[LauncherSettings]:
    return [
        launcher(**ANY_PORTS),
        launcher(name="a", **ANY_PORTS),
        launcher(name="b", command="./serve", num_workers=9, **ANY_PORTS),
    ]


def test_what_is_not_there_is_told_once_before_anything_is_started(
    tmp_path: Path, gpus: list[int]
) -> None:
    async def body(_: list[LocalPlanner]) -> None:
        raise AssertionError("nothing can be launched")

    gpus[0] = 1
    with pytest.raises(StartError) as caught:
        planning(absent(), body, {"PATH": str(tmp_path)})
    too_few, *others = str(caught.value).split(". ")
    assert too_few.startswith("The launchers need 11 GPUs; this machine has 1 GPU")
    assert others == ABSENT
    elsewhere = launcher(worker_host="192.0.2.1", command="/bin/sh", num_gpus_per_worker=0)
    with pytest.raises(
        StartError, match=r"worker_host 192\.0\.2\.1 is not an address of this machine"
    ):
        planning([elsewhere], body, {})


def test_workers_that_live_need_no_program(
    tmp_path: Path, gpus: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    async def body(planners: list[LocalPlanner]) -> None:
        assert [
            record.message for record in caplog.records if record.levelname == "ERROR"
        ] == ABSENT
        for planner in planners:
            planner.plan(0, WorkerPorts(1, 2, 3))
            with pytest.raises(StartError, match=r"^Launcher .*: the program"):
                await planner.learn()

    planning(absent(), body, {"PATH": str(tmp_path)}, alive=True)


def test_the_path_of_the_worker_counts(tmp_path: Path, gpus: list[int]) -> None:
    environ = sglang(tmp_path, "")

    async def body(planners: list[LocalPlanner]) -> None:
        await planners[0].learn()

    planning([launcher(worker_env=environ)], body, {"PATH": "/nowhere"})


def test_no_gpus_at_all_is_said_once(gpus: list[int], caplog: pytest.LogCaptureFixture) -> None:
    async def body(planners: list[LocalPlanner]) -> None:
        for planner in planners:
            held = planner.reserve(0)
            plan = planner.plan(0, held.ports)
            held.give_back()
            assert (plan.gpus, plan.env) == ((), {})

    planning([launcher(**HERE), launcher(name="b", **HERE)], body, {})
    (record,) = caplog.records
    assert record.getMessage() == "CPU mode: no GPU according to NVML; workers run without GPUs"


def test_nobody_looks_for_gpus_that_are_not_wanted(gpus: list[int]) -> None:
    async def body(planners: list[LocalPlanner]) -> None:
        held = planners[0].reserve(0)
        assert planners[0].plan(0, held.ports).env == {"CUDA_VISIBLE_DEVICES": ""}
        held.give_back()

    planning([launcher(num_gpus_per_worker=0, **HERE)], body, {})
    assert gpus[1] == 0


@pytest.mark.parametrize("environ", [{}, {"CUDA_VISIBLE_DEVICES": "0"}])
def test_named_gpus_are_looked_for_on_the_whole_machine(
    gpus: list[int], environ: dict[str, str]
) -> None:
    async def body(planners: list[LocalPlanner]) -> None:
        held = planners[0].reserve(0)
        assert planners[0].plan(0, held.ports).gpus == ("1",)
        held.give_back()

    gpus[0] = 2
    planning([launcher(worker_gpu_ids=["1"], **HERE)], body, environ)
    with pytest.raises(StartError, match=r"worker_gpu_ids names 2; this machine has 2 GPUs"):
        planning([launcher(worker_gpu_ids=["2"], **HERE)], body, environ)
    both = [launcher(name=name, worker_gpu_ids=["2"], **HERE) for name in ("a", "b")]
    with pytest.raises(StartError, match=r"^Launchers a, b: worker_gpu_ids names 2; [^:]*$"):
        planning(both, body, environ)


def test_too_few_gpus_end_it_at_once(gpus: list[int]) -> None:
    gpus[0] = 1

    async def body(_: list[LocalPlanner]) -> None:
        raise AssertionError("there is no GPU for the second worker")

    with pytest.raises(
        StartError, match=r"needs 2 GPUs; this machine has 1 GPU \(0\) according to NVML;"
    ):
        planning([launcher(num_workers=2, **HERE)], body, {})


def test_a_gpu_named_twice_is_told(gpus: list[int], caplog: pytest.LogCaptureFixture) -> None:
    async def body(_: list[LocalPlanner]) -> None:
        pass

    planning([launcher(num_workers=2, worker_gpu_ids=["0", "0"], **HERE)], body, {})
    assert caplog.records[0].levelno == logging.WARNING
    assert (
        "worker_gpu_ids gives GPU 0 to several workers: Qwen-Image-0, Qwen-Image-1" in caplog.text
    )


def test_gpus_of_a_worker_that_is_not_wanted_any_more(gpus: list[int]) -> None:
    gpus[0] = 2

    async def body(planners: list[LocalPlanner]) -> None:
        image, video = planners
        image.check([0])
        with pytest.raises(StartError):
            video.check([0, 1])
        image.forget(0)
        video.check([0, 1])

    planning([launcher(**HERE), launcher(name="b", **HERE)], body, {})


def test_taken_ports_of_all_copies(gpus: list[int]) -> None:
    async def body(planners: list[LocalPlanner]) -> None:
        (planner,) = planners
        held = planner.reserve(0)
        held.give_back()
        second = held.ports.scheduler + 1
        words = f"RuntimeError: Scheduler[1] port {second} is unavailable and --strict-ports is"
        assert planner.taken(words, held.ports) == {second}

    planning([launcher(worker_extra_args="--dp-size 2", **HERE)], body, {})
