"""From settings, GPUs and ports to the command line of a worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from router.launch.base import WorkerPlan, WorkerPorts
from router.launch.command import help_command, make_plan, may_need_strict, worker_url
from router.launch.ports import first_choice
from router.settings import LauncherSettings
from tests.unit.launch.settings import launcher

PORTS = WorkerPorts(10092, 31005, 6555)


def plan(settings: LauncherSettings, index: int = 1, **changed: Any) -> WorkerPlan:
    values: dict[str, Any] = {
        "gpus": ("2", "3"),
        "ports": PORTS,
        "first_choice": first_choice(settings, index),
        "visible": {"CUDA_VISIBLE_DEVICES": "2,3"},
        "strict_ports": False,
    }
    return make_plan(settings, index, **{**values, **changed})


def test_the_command_line() -> None:
    settings = launcher(num_gpus_per_worker=2, worker_extra_args="--batching-max-size 4")
    made = plan(settings, strict_ports=True)
    assert made.command == (
        *("sglang", "serve", "--model-path", "Qwen/Qwen-Image", "--num-gpus", "2"),
        *("--host", "127.0.0.1", "--port", "10092", "--master-port", "31005"),
        *("--scheduler-port", "6555", "--strict-ports", "true", "--batching-max-size", "4"),
    )
    assert (made.launcher, made.index, made.name) == ("Qwen-Image", 1, "Qwen-Image-1")
    assert (made.url, made.ports, made.gpus) == ("http://127.0.0.1:10092", PORTS, ("2", "3"))
    assert made.batching == 4
    assert made.env == {"CUDA_VISIBLE_DEVICES": "2,3"}
    assert "--strict-ports" not in plan(settings).command


def test_the_environment_of_the_settings_is_added() -> None:
    made = plan(launcher(worker_env={"HF_HOME": "/models"}))
    assert made.env == {"CUDA_VISIBLE_DEVICES": "2,3", "HF_HOME": "/models"}


def test_what_a_command_places_itself_is_not_added() -> None:
    settings = launcher(
        command="run --listen={host}:{port} --name w{index} --gpus {gpu_ids} --as {name} --",
        worker_extra_args=["--model", "{model}", '{"a": "{port}"}', "{}"],
    )
    assert plan(settings).command == (
        *("run", "--listen=127.0.0.1:10092", "--name", "w1", "--gpus", "2,3"),
        *("--as", "Qwen-Image-1", "--"),
        *("--num-gpus", "1", "--master-port", "31005", "--scheduler-port", "6555"),
        *("--model", "Qwen/Qwen-Image", '{"a": "10092"}', "{}"),
    )


def test_values_are_put_in_once() -> None:
    assert "{port}" in plan(launcher(model="{port}")).command


def test_a_worker_without_gpus_is_told_the_default() -> None:
    made = plan(launcher(num_gpus_per_worker=0), gpus=())
    assert made.command[4:6] == ("--num-gpus", "1")


def test_a_home_directory_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert plan(launcher(model="~/wan")).command[3] == str(tmp_path / "wan")


def test_strict_ports_are_ours_to_add_only_where_the_command_does_not_say() -> None:
    assert may_need_strict(launcher())
    assert not may_need_strict(launcher(worker_extra_args="--strict-ports=false"))
    assert not may_need_strict(launcher(command="sglang serve --strict-ports true"))


def test_the_question_for_help_has_no_placeholders_left() -> None:
    asked = help_command(launcher(command="run {host}:{port} {gpu_ids} w{index}"))
    assert asked == ["run", "127.0.0.1:10090", "", "w0", "--help"]


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:1"),
        ("::", "http://[::1]:1"),
        ("::1", "http://[::1]:1"),
        ("Node7", "http://node7:1"),
    ],
)
def test_where_a_worker_is_reached(host: str, url: str) -> None:
    port = int(url.rpartition(":")[2])
    assert worker_url(host, port) == url.removesuffix(":80")


def test_the_fingerprint_is_what_the_settings_ask_for() -> None:
    first = plan(launcher()).fingerprint
    assert len(first) == 32
    same = [
        plan(launcher(num_workers=4, restart="never", max_concurrency=3, wait_timeout=1)),
        plan(launcher(), ports=WorkerPorts(1, 2, 3)),
        plan(launcher(), strict_ports=True),
    ]
    others = [
        plan(launcher(), index=2),
        plan(launcher(), gpus=("4",)),
        plan(launcher(), visible={"CUDA_VISIBLE_DEVICES": "4"}),
        plan(launcher(model="other", name="Qwen-Image")),
        plan(launcher(worker_extra_args="--dp-size 1")),
        plan(launcher(worker_env={"A": "1"})),
        plan(launcher(worker_base_port=20000)),
        plan(launcher(worker_host="0.0.0.0")),
        plan(launcher(command="sgl serve")),
    ]
    assert {each.fingerprint for each in same} == {first}
    assert len({first, *(each.fingerprint for each in others)}) == len(others) + 1
