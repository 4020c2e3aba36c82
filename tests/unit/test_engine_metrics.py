"""The merged metrics of workers, without workers."""

from __future__ import annotations

import time

import pytest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families as parse

from router.observe.engines import UP, WORKER, Garbage, Report, expose

A, B = "http://a:1", "http://b:2"


def merged(**answers: str | None) -> dict[str, Metric]:
    named = {
        {"a": A, "b": B}[name]: "timeout" if text is None else text.encode()
        for name, text in answers.items()
    }
    families = list(parse(expose(named).decode()))
    assert len({family.name for family in families}) == len(families)
    return {family.name: family for family in families}


def rows(family: Metric) -> set[tuple[str, str, float]]:
    return {(sample.name, sample.labels[WORKER], sample.value) for sample in family.samples}


def up(families: dict[str, Metric]) -> dict[str, tuple[str, float]]:
    samples = families[UP].samples
    return {sample.labels[WORKER]: (sample.labels["why"], sample.value) for sample in samples}


def test_one_family_of_all_workers() -> None:
    text = "# HELP sglang:x Help of x.\n# TYPE sglang:x gauge\nsglang:x 1\n"
    families = merged(a=text, b=text.replace(" 1\n", "{} 2.5e0 123\n"))
    family = families["sglang:x"]
    assert (family.type, family.documentation) == ("gauge", "Help of x.")
    assert rows(family) == {("sglang:x", A, 1), ("sglang:x", B, 2.5)}
    assert up(families) == {A: ("", 1), B: ("", 1)}


def test_a_histogram_stays_one() -> None:
    text = '# TYPE t histogram\nt_bucket{le="+Inf"} 2\nt_sum 3\nt_count 2\n'
    families = merged(a=text, b=text)
    assert set(families) == {UP, "t"}
    assert len(families["t"].samples) == 6
    assert families["t"].type == "histogram"


def test_a_counter_keeps_its_name() -> None:
    text = "# TYPE c_total counter\nc_total 2\n# TYPE c_created gauge\nc_created 1e9\n"
    lines = expose({A: text.encode()}).decode().splitlines()
    assert lines[3:] == [
        "# TYPE c_total counter",
        f'c_total{{{WORKER}="{A}"}} 2.0',
        "# TYPE c_created gauge",
        f'c_created{{{WORKER}="{A}"}} 1000000000.0',
    ]


def test_workers_that_disagree_about_a_type() -> None:
    histogram = '# TYPE t histogram\nt_bucket{le="1"} 2\nt_sum 3\nt_count 2\n'
    families = merged(a=histogram, b="# TYPE t gauge\nt 7\n")
    assert rows(families["t"]) == {("t", B, 7)}
    assert families["t"].type == "unknown"
    assert rows(families["t_sum"]) == {("t_sum", A, 3)}
    families = merged(a=histogram, b="t_count 4\n")
    assert rows(families["t_count"]) == {("t_count", A, 2), ("t_count", B, 4)}
    assert "t" not in families  # servers would take `t_count` for its part


def test_labels_of_a_worker() -> None:
    hostile = r"""quote \" slash \\ line \n { } , = # é"""
    text = f'x{{ a="{hostile}", {WORKER} = "forged",exported_{WORKER}="too",}} 1'
    (sample,) = merged(a=text)["x"].samples
    assert sample.labels == {
        "a": 'quote " slash \\ line \n { } , = # é',
        WORKER: A,
        f"exported_{WORKER}": "too",
        f"exported_exported_{WORKER}": "forged",
    }


def test_the_url_is_escaped() -> None:
    url = 'http://a"\\\n'
    (sample,) = list(parse(expose({url: b"x 1"}).decode()))[1].samples
    assert sample.labels[WORKER] == url


def test_help_is_escaped() -> None:
    families = merged(a="# HELP x a \\q \\\\ \\n b\\\n# TYPE x gauge\nx 1\n")
    assert families["x"].documentation == "a \\q \\ \n b\\"


@pytest.mark.parametrize(
    ("said", "written"),
    [("1e999", "Inf"), ("-1e999", "-Inf"), ("+Inf", "Inf"), ("nan", "NaN"), (".5", "0.5")],
)
def test_numbers(said: str, written: str) -> None:
    assert f"}} {written}\n" in expose({A: f"x {said}".encode()}).decode()


def test_comments_and_blanks_are_no_garbage() -> None:
    text = "\r\n# a comment\n#\n  \n# TYPE 9 x\n\tx\t1 \r\n# EOF"
    assert rows(merged(a=text)["x"]) == {("x", A, 1)}


@pytest.mark.parametrize(
    "text",
    [
        "<html>no</html>",
        '{"json": 1}',
        "x",
        "x1",
        "x one",
        "x 1_0",
        "x 0x1",
        "x 1 2 3",
        "x 1 9999999999999999999",
        "x 1 # {} 1",
        "9x 1",
        'x{a="b} 1',
        'x{a="b",a="c"} 1',
        r'x{a="\x"} 1',
        'x{a="b"c="d"} 1',
        'x{,a="b"} 1',
        'x{__name__="y"} 1',
        'x{"y"} 1',
        "x 1\nx 2",
        'x{a="1",b="2"} 1\nx{b="2",a="1"} 1',
        "# TYPE x gauge\n# TYPE x counter",
        "# TYPE x nonsense",
        "# TYPE x",
        "x 1\n# TYPE x gauge",
        "# TYPE x histogram\nx 1",
        '# TYPE x histogram\nx_bucket{le="a"} 1',
        "x 1\0",
        f'{UP}{{why=""}} 1',
        f"# TYPE {UP} summary\n{UP}_sum 1",
        "x 1\n" + "y" * 70_000 + " 1",
        "\n".join(f"x{number} 1" for number in range(50_001)),
    ],
)
def test_garbage_is_named_and_harms_no_other_worker(text: str) -> None:
    families = merged(
        a=text,
        b="fine 1",
    )
    assert up(families) == {A: ("garbage", 0), B: ("", 1)}
    assert set(families) == {UP, "fine"}


def test_bytes_that_are_not_text() -> None:
    with pytest.raises(Garbage):
        Report.of(b'x{a="\xff"} 1')


def test_who_did_not_answer() -> None:
    assert up(merged(a=None, b="")) == {A: ("timeout", 0), B: ("", 1)}


@pytest.mark.parametrize(
    "line",
    [
        "x" + " " * 60_000 + "1 2 3",
        'x{a="b"' + " " * 60_000 + "z",
        'x{a="' + r"\"" * 30_000,
        "x{" + 'a="",' * 12_000,
        "x{" + 'a="", ' * 10_000 + "} 1",
        "# HELP x " + "\\" * 60_000,
    ],
)
def test_a_hostile_line_takes_linear_time(line: str) -> None:
    began = time.thread_time()
    expose({A: line.encode()})
    assert time.thread_time() - began < 2  # of processor time; quadratic: many seconds
