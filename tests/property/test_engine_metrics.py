"""Whatever workers say at `/metrics`, the merged exposition is valid and each keeps its own."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families as parse

from router.observe.engines import UP, WORKER, Garbage, Report, expose

NAMES = st.sampled_from(["x", "x_sum", "x_count", "x_bucket", "y", WORKER, UP])
VALUES = st.text(st.sampled_from('ab\\"\n,}{ '), max_size=4)
LABELS = st.dictionaries(st.sampled_from(["a", "le", WORKER]), VALUES, max_size=2)
PIECES = [
    "x",
    " ",
    "{",
    "}",
    '"',
    "\\",
    "=",
    ",",
    "\n",
    "# TYPE ",
    "# HELP ",
    "1",
    "é",
    "\0",
    "x 1\n",
]


@st.composite
def samples(draw: st.DrawFn) -> str:
    quoted = []
    for name, value in draw(LABELS).items():
        text = value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
        quoted.append(f'{name}="{text}"')
    return f"{draw(NAMES)}{{{','.join(quoted)}}} {draw(st.floats())}"


TYPES = st.sampled_from(["gauge", "counter", "histogram", "summary", "untyped"])
LINES = st.one_of(samples(), st.builds("# TYPE {} {}".format, NAMES, TYPES))
TEXTS = st.one_of(
    st.lists(LINES, max_size=5).map("\n".join),
    st.lists(st.sampled_from(PIECES), max_size=12).map("".join),
).map(str.encode)
BODIES = st.one_of(TEXTS, st.binary(max_size=20))


@given(st.dictionaries(st.sampled_from(["http://a", "http://b"]), BODIES))
def test_valid_and_complete(bodies: dict[str, bytes]) -> None:
    expected = {}
    for url, body in bodies.items():
        try:
            expected[url] = len(Report.of(body).series)
        except Garbage:
            expected[url] = 0
    text = expose(bodies).decode()
    types = [line.split(" ")[2] for line in text.split("\n") if line.startswith("# TYPE ")]
    assert len(types) == len(set(types))
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    for name in kinds:
        base = re.sub("_(bucket|sum|count)$", "", name)
        assert base == name or kinds.get(base) not in ("histogram", "summary")
    found = dict.fromkeys(bodies, 0)
    seen = set()
    for family in parse(text):
        for sample in family.samples:
            key = family.name, sample.name, frozenset(sample.labels.items())
            assert key not in seen
            seen.add(key)
            if sample.name != UP:
                found[sample.labels[WORKER]] += 1
    assert found == expected
