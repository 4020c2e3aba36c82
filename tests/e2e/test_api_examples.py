"""The examples of docs/api.md, from top to bottom, against the demo."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import pytest
from attrs import frozen

from router.relay.routes import ROUTES, How, find
from tests.e2e.processes import WITHIN, process, worker

DOCUMENT = Path(__file__).parents[2] / "docs" / "api.md"
ROUTER, NEWCOMER = "http://localhost:30081", "http://localhost:30090"

# What `curl` is in the examples: each answer ends its line, and standard error tells which status
# was meant and came.
PRELUDE = """
request() {
  local meant=$1; shift
  command curl -q -sS --noproxy '*' \\
    -w "\\n%{stderr}REQUEST $meant %{http_code} %{method} %{url_effective}\\n" "$@"
}
"""
pytestmark = pytest.mark.skipif(
    not (shutil.which("curl") and shutil.which("bash") and shutil.which("python3")),
    reason="curl, bash or python3 is missing",
)


@frozen
class Request:
    """One request of the examples, and its answer's status."""

    meant: int
    status: int
    method: str
    path: str


def examples() -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```", DOCUMENT.read_text(encoding="utf-8"), re.M | re.S)


def script(blocks: list[str]) -> tuple[str, list[str]]:
    """All blocks as one script, and the errors that are meant."""
    lines, errors = [PRELUDE], []
    meant = ""
    for number, block in enumerate(blocks):
        lines.append(f"echo; echo '== example {number}'")
        for line in block.splitlines():
            if comment := re.fullmatch(r"# ((\d{3}) .+)", line):
                errors.append(comment[1])
                meant = comment[2]
                continue
            line, calls = re.subn(r"\bcurl ", f"request {meant or 200} ", line)
            assert calls <= 1, f"two commands in one line: {line}"
            meant = "" if calls else meant
            lines.append(line)
        assert not meant, f"an error of no command: {block}"
    return "\n".join(lines), errors


@pytest.fixture(scope="module")
def done(
    router_pyz: Path, tmp_path_factory: pytest.TempPathFactory
) -> subprocess.CompletedProcess[str]:
    """What came of all examples."""
    logs, folder = tmp_path_factory.mktemp("logs"), tmp_path_factory.mktemp("examples")
    flags = re.search(
        r"^python3 dist/router.pyz simulate-worker --port 30090 "
        r"--model-path (\S+) --supported-task-types (\S+)$",
        DOCUMENT.read_text(encoding="utf-8"),
        re.M,
    )
    assert flags, "how to start the worker that the examples add"
    text, _ = script(examples())
    demo: list[str | Path] = [router_pyz, "demo", "--port", "0", "--time-scale", "0.1"]
    with (
        worker(router_pyz, logs / "worker.log", flags[1], flags[2]) as newcomer,
        process(logs / "demo.log", r"router +(http://\S+)", *demo) as url,
    ):
        for old, new in ((ROUTER, url), (NEWCOMER, newcomer)):
            for form in (str, lambda url: quote(url, safe=""), lambda url: urlsplit(url).netloc):
                text = text.replace(form(old), form(new))
        assert "localhost" not in text
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=folder,
            env={k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=WITHIN,
            check=False,
        )


@pytest.fixture(scope="module")
def requests(done: subprocess.CompletedProcess[str]) -> list[Request]:
    """What was asked, in order."""
    found = re.findall(r"^REQUEST (\d+) (\d+) ([A-Z]+) (\S+)$", done.stderr, re.M)
    return [
        Request(int(meant), int(status), method, unquote(urlsplit(url).path))
        for meant, status, method, url in found
    ]


def test_the_answers(done: subprocess.CompletedProcess[str], requests: list[Request]) -> None:
    assert [request for request in requests if request.status != request.meant] == [], done.stdout
    assert done.returncode == 0, done.stdout + done.stderr
    rest = done.stdout
    for error in script(examples())[1]:  # in this order
        before, found, rest = rest.partition(f'"{error[4:]}"')
        assert found, f"{error} is not in {before}"
    failed = [
        line for line in done.stdout.splitlines() if '"success":false' in line.replace(" ", "")
    ]
    assert len(failed) == len([error for error in script(examples())[1] if error[:3] == "502"])
    assert [line for line in failed if "Not Found" not in line] == []
    assert done.stdout.count('"completed"') >= 2  # the video and the mesh


def test_every_endpoint_has_an_example(requests: list[Request]) -> None:
    asked = {(request.method, find(request.method, request.path)) for request in requests}
    endpoints = {
        (method, route) for route in ROUTES if route.how is not How.ANY for method in route.methods
    }
    assert [f"{method} {route.path}" for method, route in endpoints - asked] == []
    assert any(route.how is How.ANY for _, route in asked)
