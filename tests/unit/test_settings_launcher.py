"""What launchers can be told, by file, and that all mistakes are told at once."""

from __future__ import annotations

import contextlib
import shlex
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router.errors import SettingsError
from router.settings import (
    LauncherFile,
    LauncherSettings,
    Restart,
    RouterSettings,
    load,
    settings_of,
    split_flags,
    with_launchers,
)
from router.settings.kinds import Unfit
from router.settings.launcher import NO_LAUNCHER, LauncherBackend
from router.settings.sections import Settings
from tests.launchers import restarting


def launcher(**values: Any) -> LauncherSettings:
    return LauncherSettings.of({"model": "Qwen/Qwen-Image", **values})


def refusals(**values: Any) -> list[str]:
    with pytest.raises(Unfit) as caught:
        launcher(**values)
    return [str(problem) for problem in caught.value.problems]


def from_line(*arguments: str) -> RouterSettings:
    flags = split_flags(arguments, RouterSettings, config=True)
    return load(RouterSettings, flags, steps=[with_launchers])


def problems(*arguments: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        from_line(*arguments)
    return [str(problem) for problem in caught.value.problems]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_defaults() -> None:
    assert attrs.asdict(launcher()) == {
        "backend": LauncherBackend.LOCAL,
        "model": "Qwen/Qwen-Image",
        "name": "Qwen-Image",
        "pool": "default",
        "num_workers": 1,
        "max_concurrency": None,
        "command": ("sglang", "serve"),
        "worker_extra_args": (),
        "worker_env": {},
        "num_gpus_per_worker": 1,
        "worker_gpu_ids": (),
        "worker_host": "127.0.0.1",
        "worker_base_port": 10090,
        "master_port_base": 30005,
        "scheduler_port_base": 5555,
        "internal_port_stride": 1000,
        "wait_timeout": 600.0,
        "restart": Restart.ON_FAILURE,
        **restarting(1.0),
        "log_dir": None,
    }


def test_every_field_is_described() -> None:
    names = [attribute.name for attribute in attrs.fields(LauncherSettings)]
    settings = settings_of(LauncherSettings)
    assert [setting.name for setting in settings] == names
    assert all(setting.help and setting.default_text and setting.group for setting in settings)


def test_all_values() -> None:
    made = launcher(
        name="images",
        num_workers=2,
        num_gpus_per_worker=2,
        worker_gpu_ids=["0, 1", [2, "GPU-5ee1"]],
        worker_extra_args="--dp-size 2 --prompt 'a b'",
        worker_env={"OMP_NUM_THREADS": 8, "HF_HOME": "/models", "EMPTY": ""},
        command=["python", "-m", "sglang"],
        wait_timeout="30m",
        restart="always",
        **restarting("500ms"),
        max_concurrency="auto",
        log_dir="logs",
    )
    assert made.worker_gpu_ids == (("0", "1"), ("2", "GPU-5ee1"))
    assert made.worker_extra_args == ("--dp-size", "2", "--prompt", "a b")
    assert made.worker_env == {"OMP_NUM_THREADS": "8", "HF_HOME": "/models", "EMPTY": ""}
    assert made.wait_timeout == 1800.0
    assert attrs.asdict(made).items() >= restarting(0.5).items()
    assert made.restart is Restart.ALWAYS
    assert made.max_concurrency is None
    assert launcher(**{"num-workers": 3, "worker-gpu-ids": [0, 1, 2]}).worker_gpu_ids == (
        ("0",),
        ("1",),
        ("2",),
    )


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("Qwen/Qwen-Image", "Qwen-Image"),
        ("/models/wan 2.2/", "wan-2.2"),
        ("C:\\models\\flux", "flux"),
        ("..", "launcher"),
        ("x" * 100, "x" * 64),
        ("模型", "launcher"),
    ],
)
def test_a_launcher_is_called_after_its_model(model: str, name: str) -> None:
    assert launcher(model=model).name == name


@pytest.mark.parametrize(
    ("extra", "replicas", "batching"),
    [
        ("", 1, 1),
        ("--dp-size 4 --batching-max-size=8", 4, 8),
        ("--dp 2 --data-parallel-size 3", 3, 1),
        ("--dp-size x --batching-max-size", 1, 1),
    ],
)
def test_what_the_arguments_say_of_concurrency(extra: str, replicas: int, batching: int) -> None:
    made = launcher(worker_extra_args=extra)
    assert (made.replicas, made.batching) == (replicas, batching)


def test_all_mistakes_of_a_launcher_at_once() -> None:
    assert refusals(
        model=None,
        backend="ray",
        name="a b",
        num_workers="two",
        num_gpus_per_worker=-1,
        worker_gpu_ids=["0,1", True, "0,0", "x y", [], "1,"],
        worker_extra_args="'",
        worker_env={"A": True, "B": 1.5, "C=D": "x", "CUDA_VISIBLE_DEVICES": "1", 5: "y"},
        worker_host="http://x",
        worker_base_port=65535,
        command="",
        restart=False,
        wait_timeout=0,
        max_concurency=1,
    ) == [
        "backend: expected local, got 'ray'",
        "model: expected text, got nothing",
        "name: expected a name of at most 64 letters, digits, '.', '_' and '-' that begins with"
        " a letter or digit, got 'a b'",
        "num_workers: expected a whole number from 1 to 1000, got 'two'",
        "command: expected text or a list of text items, got nothing",
        "worker_extra_args: cannot be split into words: no closing quotation",
        "worker_env.A: expected text, got true; put the value in quotes",
        "worker_env.B: expected text, got 1.5; put the value in quotes",
        "worker_env['C=D']: expected the name of an environment variable",
        "worker_env.CUDA_VISIBLE_DEVICES: the launcher sets this variable for each worker;"
        " use worker_gpu_ids",
        "worker_env.5: expected the name of an environment variable",
        "num_gpus_per_worker: expected a whole number from 0 to 64, got -1",
        "worker_gpu_ids[1]: expected GPUs such as '0,1', GPU-<uuid> or MIG-<uuid>, got true",
        "worker_gpu_ids[2]: names a GPU twice: 0,0",
        "worker_gpu_ids[3]: expected GPUs such as '0,1', GPU-<uuid> or MIG-<uuid>, got 'x y'",
        "worker_gpu_ids[4]: expected GPUs such as '0,1', GPU-<uuid> or MIG-<uuid>, got a list",
        "worker_gpu_ids[5]: expected GPUs such as '0,1', GPU-<uuid> or MIG-<uuid>, got '1,'",
        "worker_host: expected an IP address or a host name, got 'http://x'",
        "worker_base_port: expected a whole number from 0 to 65534, got 65535",
        "wait_timeout: expected a time of at least 1ms (in seconds, or with a unit: 500ms, 30s,"
        " 5m, 1h), got 0",
        "restart: expected always, on-failure or never, got false",
        "max_concurency: unknown key (did you mean max_concurrency?)",
    ]


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"worker_env": ["A=1"]}, "worker_env: expected a mapping, got a list"),
        ({"worker_gpu_ids": "0,1"}, "worker_gpu_ids: expected a list, got '0,1'"),
        ({"command": ["a", None]}, "command: expected text as item 2, got nothing"),
        ({"command": 3}, "command: expected text or a list of text items, got 3"),
        (
            {"worker_extra_args": "--x {prt}"},
            "worker_extra_args: unknown placeholder {prt} (did you mean port?); expected one of"
            " {model}, {num_gpus}, {host}, {port}, {master_port}, {scheduler_port}, {gpu_ids},"
            " {index}, {name}",
        ),
        (
            {"worker_extra_args": "--port=1"},
            "worker_extra_args: the launcher adds --port; use worker_base_port",
        ),
        (
            {"worker_base_port": 65533, "num_workers": 2},
            "worker_base_port: expected at most 65532, because 2 workers take 4 ports, got 65533",
        ),
        (
            {"num_workers": 2, "worker_gpu_ids": ["0"]},
            "worker_gpu_ids: names GPUs for 1 worker, but num_workers is 2",
        ),
        (
            {"worker_gpu_ids": ["0,1"]},
            "worker_gpu_ids[0]: names 2 GPUs, but num_gpus_per_worker is 1",
        ),
        *(({"model": wrong}, f"model: expected text, got {wrong}") for wrong in (3, 1.5)),
        ({"model": ["a"]}, "model: expected text, got a list"),
        ({"model": " "}, "model: expected text, got ' '"),
        *(
            (
                {"worker_gpu_ids": [wrong]},
                "worker_gpu_ids[0]: expected GPUs such as '0,1', GPU-<uuid> or MIG-<uuid>,"
                f" got {wrong!r}",
            )
            for wrong in ("cuda:0", "all", "GPU-", "gpu-5ee", "-1", "12345", -1)
        ),
        ({"worker_gpu_ids": ["00,0"]}, "worker_gpu_ids[0]: names a GPU twice: 0,0"),
        (
            {"worker_gpu_ids": ["0"], "num_gpus_per_worker": 0},
            "worker_gpu_ids: names GPUs, but num_gpus_per_worker is 0",
        ),
    ],
)
def test_a_mistake(values: dict[str, Any], complaint: str) -> None:
    assert refusals(**values) == [complaint]


def test_braces_that_are_no_placeholders_stay() -> None:
    json = '{"a": {"b": 1}}'
    assert launcher(worker_extra_args=["--x", json, "{}"]).worker_extra_args[1:] == (json, "{}")


@given(
    st.lists(st.text(st.characters(exclude_characters="{}", exclude_categories=["Cs"])), min_size=1)
)
def test_a_command_as_text_is_the_command_as_a_list(words: list[str]) -> None:
    assert launcher(command=shlex.join(words)).command == launcher(command=words).command


def test_one_launcher_by_file(folder: Path) -> None:
    (folder / "launch.yaml").write_text("launcher:\n  model: a/b\n  num_workers: 8\n")
    made = from_line("--launcher-config", "launch.yaml", "--keep-workers")
    assert made.keep_workers
    assert made.launcher is None
    assert made.launchers == (launcher(model="a/b", num_workers=8),)


def test_several_launchers_by_file(folder: Path) -> None:
    (folder / "launch.yaml").write_text(
        "launchers:\n- model: a/b\n- {model: a/c, name: other}\nlauncher: {model: a/d}\n"
    )
    made = from_line("--launcher-config=launch.yaml")
    assert [each.name for each in made.launchers] == ["d", "b", "other"]


def test_launchers_in_the_configuration_file(folder: Path) -> None:
    (folder / "router.yaml").write_text(
        "port: 1\nlauncher: {model: a/b}\nlaunchers: [{model: c}]\n"
    )
    assert [each.name for each in from_line("--config=router.yaml").launchers] == ["b", "c"]


def test_mistakes_of_all_files_at_once(folder: Path) -> None:
    (folder / "router.yaml").write_text("port: x\nlaunchers: [{model: a, restart: no}, {}]\n")
    (folder / "launch.yaml").write_text(
        "launchers:\n- num_workers: 0\n- {model: a, worker_gpu_ids: ['0,1']}\n"
        "launcher: {model: 3}\nlauncher: {model: a}\nx: 1\n"
    )
    assert problems("--config=router.yaml", "--launcher-config=launch.yaml", "--retries=x") == [
        "router.yaml: port: expected a whole number from 0 to 65535, got 'x'",
        "router.yaml: launchers[0].restart: expected always, on-failure or never, got false",
        "router.yaml: launchers[1].model: is required",
        "--retries: expected a whole number from 0 to 100, got 'x'",
        "launch.yaml: line 5, column 1: the key 'launcher' is given twice, first in line 4",
        "launch.yaml: launchers[0].model: is required",
        "launch.yaml: launchers[0].num_workers: expected a whole number from 1 to 1000, got 0",
        "launch.yaml: launchers[1].worker_gpu_ids[0]: names 2 GPUs, but num_gpus_per_worker is 1",
        "launch.yaml: x: unknown key",
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", NO_LAUNCHER.message),
        ("launchers: []", NO_LAUNCHER.message),
        ("model: a\nnum_workers: 2\n", NO_LAUNCHER.message),
        ("lancher: {model: a}", "lancher: unknown key (did you mean launcher?)"),
        ("- model: a", "expected a mapping, got a list"),
        ("launchers: {model: a}", "launchers: expected a list, got a mapping"),
        (
            "launcher: {model: x/A}\nlaunchers: [{model: y/b}, {model: z/a}]",
            "launchers[1].name: 'a' is also the name of launcher",
        ),
        ("a: [", "line 1, column 5: not valid YAML: expected the node content, but found"),
    ],
)
def test_a_mistake_in_the_file(folder: Path, text: str, complaint: str) -> None:
    (folder / "launch.yaml").write_text(text)
    (found,) = problems("--launcher-config=launch.yaml")
    assert found.startswith(f"launch.yaml: {complaint}")


def test_a_file_that_is_not_there(folder: Path) -> None:
    assert problems("--launcher-config=launch.yaml") == [
        "launch.yaml: cannot be read: No such file or directory"
    ]


def test_two_places_for_launchers(folder: Path) -> None:
    (folder / "router.yaml").write_text("launchers: [{model: a}, {model: A}]\n")
    (folder / "launch.yaml").write_text("launcher: {model: b}\n")
    assert problems("--config=router.yaml", "--launcher-config=launch.yaml") == [
        "--launcher-config: cannot be combined with launcher or launchers in the configuration"
        " file",
        "router.yaml: launchers[1].name: 'A' is also the name of launchers[0]",
    ]


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=60)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
        max_leaves=8,
    ),
    st.sampled_from([attribute.name for attribute in attrs.fields(LauncherSettings)]),
)
def test_any_data_is_taken_or_refused_in_words(data: object, key: str) -> None:
    cases: list[tuple[dict[str, object], type[Settings]]] = [
        ({"model": "m", key: data}, LauncherSettings),
        ({"launchers": [{"model": "m", key: data}]}, LauncherFile),
        ({"launcher": data}, LauncherFile),
    ]
    for wrong, cls in cases:
        with contextlib.suppress(Unfit):  # and nothing else
            cls.of(wrong)
