"""The command line: which command runs, with which settings, and how mistakes are told."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import router
from router import cli
from router.errors import Problem, SettingsError, StartError
from router.pool.pools import Role
from router.service.start import static_pools, static_roles, static_workers
from router.settings import DemoSettings, RouterSettings, settings_of


class Calls(list[Any]):
    """A stand-in for a module with one function, which takes note of its first argument."""

    status = 0
    error: BaseException | None = None

    def __call__(self, argument: Any, *_: object) -> int:
        self.append(argument)
        if self.error is not None:
            raise self.error
        return self.status


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Calls]:
    def put(name: str, function: str) -> Calls:
        module, calls = ModuleType(name), Calls()
        setattr(module, function, calls)
        monkeypatch.setitem(sys.modules, name, module)
        if name.startswith("router."):
            monkeypatch.setattr(router, name.removeprefix("router."), module, raising=False)
        return calls

    return put


@pytest.fixture
def service(stand_in: Callable[[str, str], Calls]) -> Calls:
    return stand_in("router.service", "run")


@pytest.fixture
def demo(stand_in: Callable[[str, str], Calls]) -> Calls:
    return stand_in("router.demo", "run")


@pytest.mark.parametrize("command", [[], ["serve"]])
def test_serve_is_the_command_when_none_is_given(command: list[str], service: Calls) -> None:
    service.status = 7
    assert cli.main([*command, "--port", "0", "--worker-urls", "http://10.0.0.5:30000"]) == 7
    assert service == [RouterSettings(port=0, worker_urls=("http://10.0.0.5:30000",))]


def test_the_arguments_of_the_process_are_the_default(
    service: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["router.pyz", "--port=5"])
    assert cli.main() == 0
    assert service == [RouterSettings(port=5)]


def test_demo(demo: Calls) -> None:
    assert cli.main(["demo", "--check", "--workers", "3", "--time-scale", "0.5"]) == 0
    assert demo == [DemoSettings(check=True, workers=3, time_scale=0.5)]


def test_the_simulated_worker_gets_its_arguments_untouched(
    stand_in: Callable[[str, str], Calls],
) -> None:
    stand_in("simulated_worker", "nothing")
    sys.modules["simulated_worker"].__spec__ = ModuleSpec("simulated_worker", None)
    worker = stand_in("simulated_worker.cli", "main")
    worker.status = 3
    arguments = ["--help", "--model-path", "m", "--version", "x"]
    assert cli.main(["simulate-worker", *arguments]) == 3
    assert worker == [arguments]


def test_every_mistake_is_told(
    service: Calls,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("router.yaml").write_text(
        "health_check_interval: soon\nworker_urls: [ftp://x]\n"
        "workers: [{url: gopher://x, max_concurrency: 2}]\n"
    )
    assert cli.main(["--config", "router.yaml", "--port", "abc", "--prot", "1"]) == 2
    assert service == []
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    starts = [
        "sglang-d-router: error: --prot: unknown flag (did you mean --port?)",
        "sglang-d-router: error: router.yaml: health_check_interval: expected a time",
        "sglang-d-router: error: --port: expected a whole number from 0 to 65535, got 'abc'",
        "sglang-d-router: error: router.yaml: worker_urls[0]: ",
        "sglang-d-router: error: router.yaml: workers[0].url: ",
        "Try 'sglang-d-router serve --help'.",
    ]
    assert len(lines) == len(starts)
    for line, start in zip(lines, starts, strict=True):
        assert line.startswith(start)


def test_worker_urls_of_the_flags_are_checked(
    service: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["--worker-urls", "http://10.0.0.5:30000", "http://169.254.169.254", "gopher://a"]
    assert cli.main(line) == 2
    err = capsys.readouterr().err
    assert "error: --worker-urls[1]: " in err
    assert "blocked" in err
    assert "error: --worker-urls[2]: " in err
    assert "--worker-urls[0]" not in err


def test_one_worker_in_two_pools_is_refused_however_its_url_is_spelt(
    service: Calls, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "router.yaml"
    file.write_text("workers: [{url: http://reward, pool: reward}]\n")
    pools = ["--pool", "teacher=http://a:80", "policy=HTTP://A/,http://b", "policy=http://Reward./"]
    assert cli.main(["--config", str(file), *pools]) == 2
    assert service == []
    assert [line.partition("error: ")[2] for line in capsys.readouterr().err.splitlines()[:-1]] == [
        "--pool[1]: HTTP://A/ is also in the pool teacher",
        "--pool[2]: http://Reward./ is also in the pool reward",
    ]


def test_one_worker_may_be_named_twice_for_one_pool(service: Calls, tmp_path: Path) -> None:
    file = tmp_path / "router.yaml"
    file.write_text("workers: [{url: http://A:80/, max_concurrency: 2}]\n")
    line = ["--worker-urls", "http://a", "--pool", "teacher=http://a/", "teacher=http://a:80"]
    cli.main(["--config", str(file), *line])
    (settings,) = service
    assert static_workers(settings) == {"http://a": 2}
    assert static_roles(settings) == {"http://a": Role("teacher")}
    assert static_pools(settings) == {"default", "teacher"}


def test_unknown_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["dmo", "--port", "x"]) == 2
    assert capsys.readouterr().err == (
        "sglang-d-router: error: dmo: unknown command (did you mean demo?)\n"
        "Try 'sglang-d-router --help'.\n"
    )


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (StartError("port 1 is in use"), 1, "sglang-d-router: error: port 1 is in use\n"),
        (
            SettingsError([Problem("--a", "is bad"), Problem("", "all is bad")]),
            2,
            "sglang-d-router: error: --a: is bad\nsglang-d-router: error: all is bad\n"
            "Try 'sglang-d-router serve --help'.\n",
        ),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_errors_of_the_service(
    service: Calls,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    status: int,
    told: str,
) -> None:
    service.error = error
    assert cli.main([]) == status
    assert capsys.readouterr().err == told


def test_a_mistake_in_the_program_is_not_hidden(service: Calls) -> None:
    service.error = KeyError("x")
    with pytest.raises(KeyError):
        cli.main([])


@pytest.mark.parametrize("width", ["40", "80", "300"])
@pytest.mark.parametrize(
    ("line", "cls"),
    [
        (["--help"], RouterSettings),
        (["-h"], RouterSettings),
        (["serve", "--help"], RouterSettings),
        (["--port", "x", "--help"], RouterSettings),
        (["demo", "--help"], DemoSettings),
    ],
)
def test_help_tells_every_flag(
    line: list[str],
    cls: type[Any],
    width: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    assert cli.main(line) == 0
    text = capsys.readouterr().out
    assert text.isascii()
    assert text.startswith("Usage: sglang-d-router ")
    for setting in settings_of(cls):
        assert f"  {setting.usage}" in text
        assert setting.group in text
    assert "--version" in text


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_of_each_command(
    name: str, capsys: pytest.CaptureFixture[str], stand_in: Callable[[str, str], Calls]
) -> None:
    stand_in("simulated_worker", "nothing")
    sys.modules["simulated_worker"].__spec__ = ModuleSpec("simulated_worker", None)
    stand_in("simulated_worker.cli", "main")
    assert cli.main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert cli.main(["help", name]) == 0
    assert capsys.readouterr().out == text
    if name != "simulate-worker":
        assert text.startswith(f"Usage: sglang-d-router {name}")
        assert max(map(len, text.splitlines())) <= 100


def test_help_of_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["help"]) == 0
    assert "  simulate-worker" in capsys.readouterr().out
    assert cli.main(["help", "dmo"]) == 2
    assert cli.main(["help", "demo", "x"]) == 2
    assert cli.main(["version", "x"]) == 2
    assert [line.partition("error: ")[2] for line in capsys.readouterr().err.splitlines()[::2]] == [
        "dmo: unknown command (did you mean demo?)",
        "x: unexpected argument",
        "x: unexpected argument",
    ]


def test_short_flags(service: Calls, demo: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["-v", "-p", "5"])
    cli.main(["demo", "-p=6", "-v"])
    assert service == [RouterSettings(port=5, verbose=True)]
    assert demo == [DemoSettings(port=6, verbose=True)]
    assert cli.main(["-p", "x", "-q"]) == 2
    assert "error: -q: unknown flag" in capsys.readouterr().err


def test_help_tells_commands_defaults_ranges_and_units(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    cli.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for part in (
        "demo run a router",
        "simulate-worker run one",
        "(0 to 65535; default: 30080)",
        "(least-request, round-robin, random, power-of-two or least-work; default: least-request)",
        "500ms",
        "64MiB",
        "--config FILE",
        "Examples:",
    ):
        assert part in text


@pytest.mark.parametrize(
    "line",
    [["--version"], ["-V"], ["version"], ["serve", "--version"], ["demo", "-V"], ["state", "-V"]],
)
def test_version(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(line) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"sglang-d-router {router.__version__}\n")
    assert f"Python {sys.version_info.major}.{sys.version_info.minor}" in text
    assert "  trio " in text
    assert "  pytest " not in text
