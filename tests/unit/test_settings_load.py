"""Flags over file over defaults; the mistakes of all of them at once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from router.errors import Problem, SettingsError
from router.settings import (
    DemoSettings,
    LogLevel,
    RouterSettings,
    RoutingAlgorithm,
    load,
    split_flags,
)
from router.settings.yamlfile import read_yaml


def from_line(*arguments: str) -> RouterSettings:
    return load(RouterSettings, split_flags(arguments, RouterSettings, config=True))


def problems(*arguments: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        from_line(*arguments)
    return [str(problem) for problem in caught.value.problems]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "router.yaml"


def test_both_forms_of_a_flag() -> None:
    settings = from_line("--port", "1", "--timeout=5m", "--routing-algorithm", "random")
    assert (settings.port, settings.timeout) == (1, 300.0)
    assert settings.routing_algorithm is RoutingAlgorithm.RANDOM


def test_the_last_of_a_repeated_flag_wins() -> None:
    assert from_line("--port", "1", "--port=2").port == 2


def test_a_list_takes_several_values_and_repeats() -> None:
    line = ("--worker-urls", "http://a", "http://b", "--port=1", "--worker-urls=http://c")
    assert from_line(*line).worker_urls == ("http://a", "http://b", "http://c")


def test_switches() -> None:
    assert from_line("--verbose").verbose is True
    assert from_line("--verbose", "--no-verbose").verbose is False
    assert from_line("--verbose=false").verbose is False
    assert problems("--verbose=maybe", "--no-verbose=1") == [
        "--no-verbose: takes no value",
        "--verbose: expected true or false, got 'maybe'",
    ]
    assert problems("--no-port") == ["--no-port: unknown flag (did you mean --port?)"]


def test_all_mistakes_of_a_command_line() -> None:
    assert problems(
        *("--prot", "4", "--port", "abc", "--por", "1", "stray", "--timeout=-5s"),
        *("--worker-urls", "--retries", "-1", "--max-connections", "--host=", "-x"),
    ) == [
        "--prot: unknown flag (did you mean --port?)",
        "--por: unknown flag (did you mean --port?)",
        "--worker-urls: expected at least one value",
        "--max-connections: expected a whole number of at least 1 or 'none', but no value follows",
        "-x: unknown flag",
        "--host: expected text, got ''",
        "--port: expected a whole number from 0 to 65535, got 'abc'",
        "--retries: expected a whole number from 0 to 100, got '-1'",
        "--timeout: expected a time of at least 1ms (in seconds, or with a unit: 500ms, 30s, 5m,"
        " 1h), got '-5s'",
    ]
    assert problems("stray") == ["stray: unexpected argument"]
    missing = "--config: expected a file name"
    assert problems("--config") == [f"{missing}, but no value follows"]
    assert problems("--config=") == [f"{missing}, got ''"]


def test_only_serve_has_a_config_file() -> None:
    (problem,) = split_flags(["--config", "x"], DemoSettings).problems
    assert str(problem).startswith("--config: unknown flag")


def test_flags_over_file_over_defaults(config: Path) -> None:
    config.write_text(
        "port: 1\nhealth-check-interval: 500ms\nworker_urls: [http://a, http://b]\n"
        "verbose: true\nlog_level: error\nmax_connections: 4\nmax_request_bytes: 2GiB\n"
    )
    settings = from_line("--config", "router.yaml")
    assert settings == RouterSettings(
        port=1,
        health_check_interval=0.5,
        worker_urls=("http://a", "http://b"),
        verbose=True,
        log_level=LogLevel.ERROR,
        max_connections=4,
        max_request_bytes=2 * 1024**3,
    )
    settings = from_line(
        *("--worker-urls", "http://c", "--config=router.yaml", "--no-verbose"),
        *("--max-connections", "none"),
    )
    assert settings.worker_urls == ("http://c",)
    assert (settings.verbose, settings.max_connections, settings.port) == (False, None, 1)


def test_an_empty_file_says_nothing(config: Path) -> None:
    config.write_text("# nothing\n")
    assert from_line("--config", "router.yaml") == RouterSettings()


def test_mistakes_of_flags_and_file_together(config: Path) -> None:
    config.write_text(
        "port: true\nhealth_check_interval: soon\nretries:\nconfig: x\nretrys: 1\n"
        "admin_api_key: a\nadmin_api_key_file: b\nport: 1.5\n"
    )
    assert problems("--config", "router.yaml", "--port", "99999", "--launcher") == [
        "--launcher: unknown flag (did you mean --launcher-config?)",
        "router.yaml: line 8, column 1: the key 'port' is given twice, first in line 1",
        "router.yaml: port: expected a whole number from 0 to 65535, got 1.5",
        "router.yaml: retries: expected a whole number from 0 to 100, got nothing",
        "router.yaml: health_check_interval: expected a time of at least 1ms (in seconds, or"
        " with a unit: 500ms, 30s, 5m, 1h), got 'soon'",
        "router.yaml: config: unknown key",
        "router.yaml: retrys: unknown key (did you mean retries?)",
        "--port: expected a whole number from 0 to 65535, got '99999'",
        "router.yaml: admin_api_key_file: cannot be combined with admin_api_key",
    ]


def test_the_blame_for_a_check_goes_where_the_value_came_from(config: Path) -> None:
    config.write_text("admin_api_key: a\nadmin_api_key_file: b\nworker_urls: [x]\n")
    message = "cannot be combined with admin_api_key"
    assert problems("--config=router.yaml") == [f"router.yaml: admin_api_key_file: {message}"]
    assert problems("--config=router.yaml", "--admin-api-key-file=c") == [
        f"--admin-api-key-file: {message}"
    ]

    def check(settings: RouterSettings) -> list[Problem]:
        return [Problem(f"worker_urls[{i}]", url) for i, url in enumerate(settings.worker_urls)]

    flags = split_flags(["--config=router.yaml", "--port=x"], RouterSettings, config=True)
    with pytest.raises(SettingsError, match=r"router\.yaml: worker_urls\[0\]: x") as caught:
        load(RouterSettings, flags, checks=[check])
    assert "--port: expected" in str(caught.value)
    flags = split_flags(["--worker-urls", "y"], RouterSettings)
    with pytest.raises(SettingsError, match=r"^--worker-urls\[0\]: y$"):
        load(RouterSettings, flags, checks=[check])


def test_a_file_that_is_no_mapping(config: Path) -> None:
    config.write_text("- port\n")
    assert problems("--config", "router.yaml") == ["router.yaml: expected a mapping, got a list"]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"port: 1\nhost: \xff\n", "line 2, column 7: not UTF-8 text"),
        ("port: 1\n".encode("utf-16"), "line 1, column 1: not UTF-8 text"),
        (b"port: 1\n  host: x\n", "line 2, column 7: not valid YAML: mapping values"),
        (b"port: [1\n", "line 2, column 1: not valid YAML: "),
        (b"a: 1\nb: \x00\n", "line 2, column 4: not valid YAML: a control character"),
        (b"a: 1\n---\nb: 1\n", "line 2, column 1: not valid YAML: but found another document"),
        (b"a: !!python/name:os.system x\n", "line 1, column 4: not valid YAML: could not"),
        (b"a: !!timestamp x\n", "line 1, column 4: not valid YAML: could not"),
        (b"a: !!int x\n", "not valid YAML: a value does not fit its tag"),
        (b"[" * 10_000, "not valid YAML: nested too deeply"),
        (b"{[1]: 2}\n", "line 1, column 2: not valid YAML: found unhashable key"),
    ],
)
def test_files_that_cannot_be_used(config: Path, raw: bytes, message: str) -> None:
    config.write_bytes(raw)
    (problem,) = problems("--config", "router.yaml")
    assert problem.startswith(f"router.yaml: {message}")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    missing = tmp_path / "none.yaml"
    assert problems("--config", str(missing)) == [
        f"{missing}: cannot be read: No such file or directory"
    ]
    assert problems("--config", str(tmp_path)) == [f"{tmp_path}: cannot be read: Is a directory"]


def test_a_byte_order_mark_is_no_part_of_the_first_key(config: Path) -> None:
    config.write_bytes(b"\xef\xbb\xbfport: 7\n")
    assert from_line("--config", "router.yaml").port == 7


def test_a_byte_order_mark_does_not_move_the_place_of_a_mistake(config: Path) -> None:
    config.write_bytes(b"\xef\xbb\xbfport: 7\n\xff")
    assert problems("--config", "router.yaml") == ["router.yaml: line 2, column 1: not UTF-8 text"]


NESTED = "".join(
    f"k{i}: &m{i}\n  <<: [{', '.join([f'*m{i - 1}'] * 9) if i else '{port: 1}'}]\n"
    for i in range(9)
)
ALIASED = "a0: &a0 [1]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
)


@pytest.mark.parametrize("raw", [NESTED, ALIASED, "a: &a\n  <<: *a\n", "a: &a [*a]\n"])
def test_aliases_that_add_up_without_end_are_refused_at_once(config: Path, raw: str) -> None:
    config.write_text(raw)
    began = time.perf_counter()
    assert problems("--config", "router.yaml") == [
        "router.yaml: the aliases expand to too many values"
    ]
    assert time.perf_counter() - began < 1


def test_a_large_file_with_a_few_aliases_is_read(config: Path) -> None:
    config.write_text(
        "x: &x {a: 1, b: 2}\nlist:\n" + "".join(f"- {{<<: *x, c: {n}}}\n" for n in range(5_000))
    )
    data, wrong = read_yaml(str(config))
    assert not wrong
    assert isinstance(data, dict)
    assert data["list"][-1] == {"a": 1, "b": 2, "c": 4999}


def test_dates_stay_text_and_merged_keys_may_be_overridden(config: Path) -> None:
    config.write_text("base: &b {x: 2026-01-02, y: 1}\nmore:\n  <<: *b\n  y: 2\n")
    assert read_yaml(str(config)) == (
        {"base": {"x": "2026-01-02", "y": 1}, "more": {"x": "2026-01-02", "y": 2}},
        [],
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(
    st.text(alphabet="ab1:-[]{}&*!|>'\"#,?% \n\t\x00é", max_size=30).map(str.encode) | st.binary()
)
@example(b"&a {*a : 1}")
@example(b"&a [*a]")
@example(b"!!float x")
@example(b"!!binary _")
@example(b"!!omap [a]")
@example(b"!!bool x")
@example(b"!!int ''")
@example(b"a: " + b"9" * 5000)
@example(b"port: 0x" + b"f" * 5000)
@example(b"{&a [a]: 1, &a [a]: 1}")
def test_any_file_gives_settings_or_problems(config: Path, raw: bytes) -> None:
    config.write_bytes(raw)
    paths = []
    try:
        from_line("--config", "router.yaml")
    except SettingsError as error:
        paths = [problem.path for problem in error.problems]
    assert all(path.startswith("router.yaml") for path in paths)
