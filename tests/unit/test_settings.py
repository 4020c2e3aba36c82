"""The settings classes and their kinds: what each accepts, and what it says otherwise."""

from __future__ import annotations

import math
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.settings import (
    DemoSettings,
    LauncherSettings,
    LogLevel,
    RouterSettings,
    RoutingAlgorithm,
    settings_of,
)
from router.settings.kinds import (
    Choice,
    Duration,
    Kind,
    Many,
    Number,
    Size,
    Switch,
    Text,
    Unfit,
    WholeNumber,
    got,
)
from router.settings.pool_kind import PoolMembers

MIB = 1024**2
GIB = 1024**3


def refusal(kind: Kind, value: object) -> str:
    with pytest.raises(Unfit) as caught:
        kind.parse(value)
    return str(caught.value)


def test_defaults_are_those_of_the_documentation() -> None:
    assert attrs.asdict(RouterSettings()) == {
        "host": "0.0.0.0",
        "port": 30080,
        "tls_cert": None,
        "tls_key": None,
        "tls_client_ca": None,
        "shutdown_timeout": 60.0,
        "worker_urls": (),
        "pool": (),
        "max_connections": None,
        "resolve_all": False,
        "launcher_config": None,
        "keep_workers": False,
        "worker_ca": None,
        "worker_insecure": False,
        "worker_api_key": None,
        "worker_api_key_file": None,
        "workers": (),
        "launcher": None,
        "launchers": (),
        "routing_algorithm": RoutingAlgorithm.LEAST_REQUEST,
        "queue_size": 10_000,
        "queue_bytes": 1024 * MIB,
        "queue_timeout": None,
        "queue_order": "fifo",
        "priority_ageing": 300.0,
        "idempotency_keys": 10_000,
        "idempotency_bytes": 512 * MIB,
        "worker_concurrency": None,
        "max_jobs_per_worker": 100,
        "retries": 3,
        "state_dir": None,
        "fresh": False,
        "state_best_effort": False,
        "trust_downtime": 0.0,
        "run_id": None,
        "fresh_weights": False,
        "resume_weights": False,
        "health_check_interval": 10.0,
        "health_check_failure_threshold": 3,
        "ejection_failures": 2,
        "ejection_pause": 1.0,
        "ejection_max_pause": 60.0,
        "timeout": 1800.0,
        "connect_timeout": 5.0,
        "idle_timeout": 300.0,
        "client_send_timeout": None,
        "peek_limit": MIB,
        "facts_limit": 64 * MIB,
        "max_request_bytes": GIB,
        "websocket_max_message": 64 * MIB,
        "refit_timeout": 1800.0,
        "drain_timeout": 1800.0,
        "strict_model": False,
        "trust_external_weights": False,
        "tensor_updates": "partial",
        "max_assets": 1_000_000,
        "admin_api_key": None,
        "admin_api_key_file": None,
        "cors_origin": (),
        "max_client_connections": None,
        "allowed_worker_hosts": (),
        "log_level": LogLevel.INFO,
        "log_format": "text",
        "access_log": "auto",
        "dashboard_previews": False,
        "log_prompts": False,
        "verbose": False,
    }
    demo = DemoSettings()
    assert (demo.host, demo.port, demo.workers) == ("127.0.0.1", 30081, 2)
    assert (demo.worker_base_port, demo.time_scale) == (0, 1.0)
    assert (demo.check, demo.verbose) == (False, False)


def test_settings_are_frozen_and_checked_however_they_are_made() -> None:
    settings = RouterSettings(port=0)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        settings.port = 1  # type: ignore[misc]
    with pytest.raises(
        ValueError, match=r"port: expected a whole number from 0 to 65535, got 65536"
    ):
        RouterSettings(port=65536)
    with pytest.raises(ValueError, match=r"retries: .*got true"):
        attrs.evolve(settings, retries=True)


def test_verbose_is_debug() -> None:
    assert RouterSettings(log_level=LogLevel.ERROR).effective_log_level is LogLevel.ERROR
    assert RouterSettings(log_level=LogLevel.ERROR, verbose=True).effective_log_level == "debug"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (5, 5.0),
        (2.5, 2.5),
        ("30", 30.0),
        (".5", 0.5),
        ("1e3", 1000.0),
        ("300ms", 0.3),
        ("30s", 30.0),
        ("5m", 300.0),
        ("1.5 h", 5400.0),
        ("1H", 3600.0),
    ],
)
def test_durations(value: object, seconds: float) -> None:
    parsed = Duration().parse(value)
    assert parsed == seconds
    assert isinstance(parsed, float)


@pytest.mark.parametrize(
    "value",
    [
        *("", "s", "5 parsecs", "1m30s", "-5s", "nan", "inf", "1e400", "5s ", "5\ns", "\u0663s"),
        *(math.nan, math.inf, 10**400, -1, True, None, []),
    ],
)
def test_what_is_no_duration(value: object) -> None:
    assert refusal(Duration("0s"), value).startswith(
        "expected a time of at least 0s (in seconds, or with a unit: 500ms, 30s, 5m, 1h), got "
    )


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (1048576, MIB),
        ("1048576", MIB),
        ("64MiB", 64 * MIB),
        ("64M", 64 * MIB),
        ("64mib", 64 * MIB),
        ("64MB", 64_000_000),
        ("1GiB", GIB),
        ("1.5 KiB", 1536),
        ("7B", 7),
    ],
)
def test_sizes(value: object, size: int) -> None:
    parsed = Size().parse(value)
    assert parsed == size
    assert isinstance(parsed, int)


@pytest.mark.parametrize(
    "value", ["0.3B", "1.3B", "1TiB", "M", "1.2.3M", "1e999M", 1.0, True, None, "-1K"]
)
def test_what_is_no_size(value: object) -> None:
    assert "expected a size of at least 1B (in bytes, or with a unit" in refusal(Size("1B"), value)


@pytest.mark.parametrize("value", [8, "8", "+8", "008"])
def test_whole_numbers(value: object) -> None:
    assert WholeNumber(0, 9).parse(value) == 8


@pytest.mark.parametrize(
    "value",
    [True, False, 8.0, "8.0", "two", "", " 8", "1_0", "\u0668", None, 10**40, 10, -1, "9" * 99],
)
def test_what_is_no_whole_number(value: object) -> None:
    assert refusal(WholeNumber(0, 9), value).startswith("expected a whole number from 0 to 9, got ")


def test_no_number_at_all_only_where_that_means_something() -> None:
    assert WholeNumber(1, none="none").parse("none") is None
    assert WholeNumber(1, none="none").parse(None) is None
    assert refusal(WholeNumber(1, none="none"), 0) == (
        "expected a whole number of at least 1 or 'none', got 0"
    )
    assert refusal(WholeNumber(1), "none").endswith("got 'none'")
    auto = WholeNumber(1, none="auto")
    assert auto.parse("auto") is None
    assert auto.parse(None) is None
    assert refusal(auto, "none").endswith("of at least 1 or 'auto', got 'none'")


def test_switches_choices_and_texts() -> None:
    assert Switch().parse(True) is True
    assert Switch().parse("No") is False
    assert refusal(Switch(), 1) == "expected true or false, got 1"
    algorithm = Choice(RoutingAlgorithm)
    assert algorithm.parse("random") is RoutingAlgorithm.RANDOM
    assert refusal(algorithm, "round_robin") == (
        "expected least-request, round-robin, random, power-of-two or least-work,"
        " got 'round_robin' (did you mean round-robin?)"
    )
    assert refusal(algorithm, []).endswith("got a list")
    assert Text(optional=True).parse(None) is None
    assert refusal(Text(), None) == "expected text, got nothing"
    assert refusal(Text(), " ") == "expected text, got ' '"
    assert refusal(Text(), 127) == "expected text, got 127"
    assert Many(Text()).parse(["a", "b"]) == ("a", "b")
    assert refusal(Many(Text()), "ab") == "expected a list, got 'ab'"


def test_what_was_got_is_short_and_in_words() -> None:
    values = [None, True, 3, 2.5, {}, [], "x" * 100, 10**5000, object()]
    assert [got(value) for value in values] == [
        "nothing",
        "true",
        "3",
        "2.5",
        "a mapping",
        "a list",
        repr("x" * 50) + "...",
        "a very large number",
        "object",
    ]


@pytest.mark.parametrize("cls", [RouterSettings, DemoSettings, LauncherSettings])
def test_a_default_that_is_shown_is_the_one_that_is_meant(cls: type[Any]) -> None:
    """Words such as "that of --timeout" stand only for what is not there."""
    made = cls(model="m") if cls is LauncherSettings else cls()
    for setting in settings_of(cls):
        default = getattr(made, setting.name)
        if default not in (None, (), {}) and setting.name not in ("model", "name"):
            assert setting.kind.parse(setting.default_text) == default


def test_what_a_list_lacks_is_told_by_its_place() -> None:
    with pytest.raises(Unfit) as caught:
        Many(Text()).parse(["a", 3, "b", ""])
    assert [problem.path for problem in caught.value.problems] == ["[1]", "[3]"]


@given(st.one_of(st.text(), st.floats(), st.integers(), st.none(), st.lists(st.text())))
def test_a_kind_reads_a_value_or_calls_it_unfit(value: object) -> None:
    kinds: list[Kind] = [
        *(Duration("0s"), Size("1B"), WholeNumber(0, 5), Number(), Switch(), Text()),
        *(Choice(LogLevel), Many(Text())),
    ]
    for kind in kinds:
        problems = []
        try:
            parsed = kind.parse(value)
        except Unfit as unfit:
            problems = unfit.problems
            assert problems
        else:
            assert kind.parse(parsed) == parsed
        wanted = [kind.expected, *([kind.item.expected] if isinstance(kind, Many) else [])]
        starts = tuple(f"expected {one}, got " for one in wanted)
        assert all(problem.message.startswith(starts) for problem in problems)


@pytest.mark.parametrize("cls", [RouterSettings, DemoSettings])
def test_every_field_is_a_setting_that_is_described(cls: type[Any]) -> None:
    names = [attribute.name for attribute in attrs.fields(cls)]
    # Lists of settings stand only in files: docs/operations.md, docs/launching.md.
    only_in_files = ("workers", "launcher", "launchers") if cls is RouterSettings else ()
    assert [setting.name for setting in settings_of(cls)] == [
        name for name in names if name not in only_in_files
    ]
    for setting in settings_of(cls):
        assert setting.help
        assert setting.group
        assert setting.default_text
        assert setting.usage != setting.flag or setting.is_switch
        assert setting.kind.parse(getattr(cls(), setting.name)) == getattr(cls(), setting.name)


def test_a_described_setting() -> None:
    setting = next(each for each in settings_of(RouterSettings) if each.name == "peek_limit")
    assert (setting.usage, setting.group) == ("--peek-limit SIZE", "Limits")
    assert (setting.default_text, setting.kind.range) == ("1MiB", "at least 1B")


def test_cross_field_checks() -> None:
    assert list(RouterSettings().problems()) == []
    (problem,) = RouterSettings(admin_api_key="k", admin_api_key_file="f").problems()
    assert str(problem) == "admin_api_key_file: cannot be combined with admin_api_key"
    assert list(DemoSettings(worker_base_port=65532).problems()) == []
    (problem,) = DemoSettings(worker_base_port=65533).problems()
    assert problem.path == "worker_base_port"


def test_pools_of_workers() -> None:
    urls = ("http://10.0.0.6:1", "http://10.0.0.7:1")
    made = RouterSettings.of({"pool": ["teacher=" + ",".join(urls), "policy=http://10.0.0.5:1"]})
    assert made.pool == (
        PoolMembers("teacher", urls),
        PoolMembers("policy", ("http://10.0.0.5:1",)),
    )
    reward = {"url": "http://10.0.0.9:1", "kind": "http", "health_path": "/x", "pool": "reward"}
    assert RouterSettings.of({"workers": [reward]}).workers[0].pool == "reward"
    for wrong, path in (
        ({"pool": ["teacher"]}, "pool[0]"),
        ({"pool": ["a b=http://10.0.0.6:1"]}, "pool[0]"),
        ({"pool": ["a=http://10.0.0.6:1,"]}, "pool[0]"),
        ({"workers": [{**reward, "pool": "default"}]}, "workers[0].pool"),
        ({"workers": [{**reward, "kind": "sglang"}]}, "workers[0].health_path"),
        ({"workers": [reward], "pool": ["reward=http://10.0.0.6:1"]}, "pool[0]"),
        ({"workers": [reward, {"url": urls[0], "pool": "reward"}]}, "workers[1].kind"),
    ):
        with pytest.raises(Unfit) as unfit:
            RouterSettings.of(wrong)
        assert [problem.path for problem in unfit.value.problems] == [path]
