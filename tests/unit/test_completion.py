"""What shells complete, from the scripts that the program prints."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from router import cli
from router.settings import RouterSettings, settings_of

CASES = [
    ("sglang-d-router st", {"state", "status"}),
    ("sglang-d-router --log-l", {"--log-level"}),
    ("sglang-d-router serve --log-level ", {"debug", "info", "warning", "error"}),
    ("sglang-d-router jobs --l", {"--limit"}),
    ("sglang-d-router completion ", {"bash", "zsh", "fish"}),
    ("sglang-d-router help che", {"check-config"}),
    ("sglang-d-router state re", {"repair"}),
    ("sglang-d-router check-config rou", {"router.yaml"}),
    ("sglang-d-router status --ca rou", {"router.yaml"}),
    ("sglang-d-router logs wor", set()),
    ("sglang-d-router --host ", set()),
]


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(["completion", shell]) == 0
    return capsys.readouterr().out


def run(*command: str, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_bash_completes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "router.yaml").touch()
    (tmp_path / "script").write_text(script("bash", capsys))
    calls = ["source ./script", "compopt() { :; }"]
    for line, _ in CASES:
        words = line.split(" ")
        quoted = " ".join(f"'{word}'" for word in words)
        calls += [f"COMP_WORDS=({quoted}) COMP_CWORD={len(words) - 1} COMPREPLY=()"]
        calls += ["_sglang_d_router", 'echo "${COMPREPLY[*]}"']
    told = run("bash", "-euc", "\n".join(calls), cwd=tmp_path).splitlines()
    assert [set(line.split()) for line in told] == [wanted for _, wanted in CASES]


@pytest.mark.skipif(not shutil.which("fish"), reason="needs fish")
def test_fish_completes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "router.yaml").touch()
    (tmp_path / "script").write_text(script("fish", capsys))
    calls = ["source ./script"]
    calls += [f"complete -C '{line}'; echo =" for line, _ in CASES]
    told = run("fish", "--no-config", "-c", "\n".join(calls), cwd=tmp_path).split("=\n")
    found = [{row.partition("\t")[0] for row in part.splitlines()} for part in told[:-1]]
    assert found == [wanted for _, wanted in CASES]


@pytest.mark.skipif(not shutil.which("zsh"), reason="needs zsh")
def test_zsh_reads_its_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "script").write_text(script("zsh", capsys))
    begin = "autoload -U compinit; compinit -u -d dump; source ./script; echo $_comps[router.pyz]"
    assert run("zsh", "-fc", begin, cwd=tmp_path) == "_sglang_d_router\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_command_and_flag_is_there(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = script(shell, capsys)
    assert [name for name in cli.COMMANDS if name not in text] == []
    names = [setting.flag.removeprefix("--") for setting in settings_of(RouterSettings)]
    assert [name for name in names if name not in text] == []


def test_wrong_shells(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["bash", "zsh"], ["bsh"]):
        assert cli.main(["completion", *arguments]) == 2
    assert "bsh: expected bash, zsh, fish (did you mean bash?)" in capsys.readouterr().err
