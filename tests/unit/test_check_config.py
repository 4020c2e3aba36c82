"""`check-config` names file, line and key of each mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from router import cli

BAD = """\
port: abc
# a comment
health-check-interval: soon
worker_urls:
  - http://10.0.0.5:30000
  - ftp://x
launchers:
  - model: a
  - model: b
    num_workers: many
    nmu_workers: 3
admin_api_key_file: nosuch
nonsense: {}
"""


def check(file: str | Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    status = cli.main(["check-config", str(file)])
    captured = capsys.readouterr()
    return status, (captured.out + captured.err).splitlines()


@pytest.fixture(autouse=True)
def _there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_good_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("r.yaml").write_text("port: 1\nlauncher: {model: a/b, num_workers: 2}\n")
    assert check("r.yaml", capsys) == (0, ["r.yaml is good; launches b (2)"])


def test_each_mistake_has_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    Path("r.yaml").write_text(BAD)
    status, lines = check("r.yaml", capsys)
    assert status == 1
    assert [line.partition(": ")[0] for line in lines] == [
        *("r.yaml:1", "r.yaml:3", "r.yaml:6", "r.yaml:10", "r.yaml:11", "r.yaml:12", "r.yaml:13"),
        "r.yaml",
    ]
    assert lines[1].startswith("r.yaml:3: health_check_interval: expected a time")
    assert lines[4].startswith("r.yaml:11: launchers[1].nmu_workers: unknown key")
    assert lines[-1] == "r.yaml: 7 mistakes"


def test_mistakes_of_a_launcher_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("l.yaml").write_text("launcher:\n  model: a\n  num_workers: many\n")
    Path("r.yaml").write_text("port: 1\nlauncher_config: l.yaml\n")
    status, lines = check("r.yaml", capsys)
    assert status == 1
    assert lines[0].startswith("l.yaml:3: launcher.num_workers: expected a whole number")


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("port: 1\n x: :\n", "r.yaml:2: column 3: not valid YAML"),
        ("port: 1\nport: 2\n", "r.yaml:2: column 1: the key 'port' is given twice"),
        ("[]\n", "r.yaml: expected a mapping"),
        ("workers: [{url: http://a, pool: p}]\npool: [q=http://a]\n", "r.yaml:2: pool[0]: "),
    ],
)
def test_other_mistakes(text: str, start: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("r.yaml").write_text(text)
    status, lines = check("r.yaml", capsys)
    assert status == 1
    assert lines[0].startswith(start)
    assert lines[1] == "r.yaml: 1 mistake"


def test_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert check("nosuch", capsys)[0] == 1
    assert cli.main(["check-config"]) == 2
    assert cli.main(["check-config", "a", "b"]) == 2
    assert cli.main(["check-config", "--port"]) == 2
