"""docs/launching.md and the examples of launching are true: compared with the code, and loaded."""

from __future__ import annotations

import configparser
import re
import shlex
from pathlib import Path

import pytest
import yaml

from router.launch import launcher as supervision
from router.launch.local import PATIENCE
from router.launch.output import MOST_BYTES
from router.launch.resources import Found, Gpu, GpuShares
from router.settings import (
    LauncherFile,
    LauncherSettings,
    RouterSettings,
    load,
    markdown_table,
    split_flags,
    with_launchers,
)
from router.settings.launcher import ADDED_FLAGS, PLACEHOLDERS
from router.settings.yamlfile import read_yaml

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "launching.md").read_text(encoding="utf-8")


def launchers(path: Path) -> tuple[LauncherSettings, ...]:
    flags = split_flags([f"--launcher-config={path}"], RouterSettings)
    return load(RouterSettings, flags, steps=[with_launchers]).launchers


def test_the_table_of_fields_is_that_of_the_settings() -> None:
    table = markdown_table(LauncherSettings, flags=False)
    assert table in TEXT, f"docs/launching.md lacks this table:\n\n{table}"


def test_the_table_of_placeholders_is_that_of_the_code() -> None:
    rows = re.findall(r"^\| `\{(\w+)\}` \| .* \|(?: `(--[\w-]+)`)? \|$", TEXT, re.M)
    assert [name for name, _ in rows] == list(PLACEHOLDERS)
    assert {(flag, name) for name, flag in rows if flag} == {
        (flag, name) for flag, name, _ in ADDED_FLAGS
    }


def test_figures() -> None:
    words = " ".join(TEXT.split())
    first, second = PATIENCE
    assert f"SIGINT, after {first:g} s SIGTERM, after {second:g} s more SIGKILL" in words
    rules = supervision.Supervision()
    assert (rules.backoff_most, rules.unhealthy) == (60.0, 60.0), "a minute, it says"
    assert f"After {rules.quick_deaths} quick deaths in a row" in words
    assert f"beyond {MOST_BYTES // 1024**2} MiB" in words


@pytest.mark.parametrize("block", re.findall(r"^```yaml\n(.*?)^```", TEXT, re.M | re.S))
def test_yaml_in_the_text_can_be_loaded(block: str) -> None:
    LauncherFile.of(yaml.safe_load(block))


def test_eight_workers_with_a_gpu_each() -> None:
    (launcher,) = launchers(ROOT / "examples" / "local_launcher.yaml")
    block = re.findall(r"^```yaml\n(.*?)^```", TEXT, re.M | re.S)[0]
    assert LauncherFile.of(yaml.safe_load(block)).launcher == launcher
    assert (launcher.model, launcher.num_workers, launcher.wait_timeout) == (
        "Qwen/Qwen-Image",
        8,
        600.0,
    )


def test_the_mixed_pool_fits_eight_gpus() -> None:
    mixed = launchers(ROOT / "examples" / "mixed_launcher.yaml")
    assert [launcher.name for launcher in mixed] == ["image", "video"]
    eight = Found(tuple(Gpu(str(number)) for number in range(8)), "NVML")
    shares = GpuShares(mixed, eight)
    assert list(shares.faults()) == []
    assert shares.of(mixed[1], 1) == ("6", "7")


def test_every_yaml_example_is_loaded() -> None:
    names = {path.name for path in (ROOT / "examples").glob("*launcher*.yaml")}
    assert names == {"local_launcher.yaml", "mixed_launcher.yaml"}
    for name in names:
        assert read_yaml(str(ROOT / "examples" / name))[1] == []
        assert name in (ROOT / "examples" / "README.md").read_text(encoding="utf-8")


def test_the_systemd_unit() -> None:
    class Sections(dict[str, object]):
        """Keys may stand several times: systemd gathers them."""

        def __setitem__(self, key: str, value: object) -> None:
            if isinstance(value, list) and key in self:
                old = self[key]
                assert isinstance(old, list)
                old.extend(value)
            else:
                super().__setitem__(key, value)

    path = ROOT / "examples" / "sglang-d-router.service"
    text = re.sub(r"\\\n\s*", " ", path.read_text(encoding="utf-8"))
    unit = configparser.RawConfigParser(dict_type=Sections, strict=False, delimiters="=")
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(text)
    assert set(unit.sections()) == {"Unit", "Service", "Install"}
    service = unit["Service"]
    # With any other, the workers die with the router, and none is left to be taken over.
    assert service["KillMode"] == "process"
    program, archive, *arguments = shlex.split(service["ExecStart"])
    assert Path(program).name == "python3"
    assert Path(archive).name == "router.pyz"
    flags = split_flags(arguments, RouterSettings, config=True)
    assert flags.problems == []
    # Independent of host name, port and home: the next router must find it.
    assert flags.values["state_dir"] == "/var/lib/" + service["StateDirectory"]
    assert service["StateDirectoryMode"] == "0700"
    assert flags.values["launcher_config"] == "/etc/sglang-d-router/launcher.yaml"
    # What is in flight, then each worker in turn of signals: only then may systemd use force.
    made = RouterSettings()
    assert float(service["TimeoutStopSec"]) > made.shutdown_timeout + sum(PATIENCE)
    assert service["RestartPreventExitStatus"] == "2"
