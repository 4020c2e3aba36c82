"""The documents are true: links lead somewhere, and what can be compared with the code agrees."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from router.errors import SettingsError
from router.pool import lifecycle
from router.pool.cost import Speeds
from router.pool.lifecycle import Table
from router.pool.worker import Origin, Worker
from router.relay.routes import ROUTES, How, Route, find
from router.settings import RouterSettings, load, split_flags
from router.web.payload import worker_payload
from simulated_worker.config import VERSION
from simulated_worker.faults import CATALOGUE
from tests.test_architecture import LAYERS

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path for folder in (".", "docs", "sglang", "examples") for path in (ROOT / folder).glob("*.md")
)


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def demand(text: str, *, of: str) -> None:
    """Fail with the text that the document should hold."""
    assert text in text_of(of), f"{of} lacks this:\n\n{text}"


def rows(text: str) -> Iterator[list[str]]:
    """The rows of all Markdown tables, without the lines below their heads."""
    for line in text.splitlines():
        if line.startswith("| ") and not line.startswith("| ---"):
            yield [cell.strip() for cell in line.strip("|").split(" | ")]


def table(head: list[str], body: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def anchors(path: Path) -> set[str]:
    """What the headings of a document are called in links to them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links(path: Path) -> None:
    wrong = []
    prose = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"https?://", link):
            continue
        place, _, anchor = link.partition("#")
        target = (path.parent / place).resolve() if place else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    assert not wrong


def test_paths_in_the_architecture_exist() -> None:
    found = re.findall(
        r"`((?:router|sglang|tests|docs|examples)/[^`\s]*)`", text_of("docs/architecture.md")
    )
    assert len(found) > 30
    assert [path for path in found if not (ROOT / path).exists()] == []


def test_the_architecture_names_every_room() -> None:
    text = text_of("docs/architecture.md")
    paths = (ROOT / "router").iterdir()
    rooms = [path for path in paths if "__" not in path.name and path.suffix in ("", ".py")]
    names = [f"`router/{room.name}{'/' if room.is_dir() else ''}`" for room in rooms]
    assert [name for name in names if name not in text] == []


def test_the_layers_in_the_architecture() -> None:
    lines = []
    for layer in LAYERS:
        here = [room for room in sorted(layer) if exists(room)]
        lines.append(", ".join(here) + "\n" if here else "")
    demand("```\n" + "".join(lines) + "```\n", of="docs/architecture.md")


def exists(room: str) -> bool:
    place = ROOT / "router" / room
    return place.is_dir() or place.with_suffix(".py").is_file()


@pytest.mark.parametrize(
    "transitions",
    [lifecycle.ADMIN, lifecycle.MEMORY],
    ids=["admin", "memory"],
)
def test_the_transitions_in_the_architecture(transitions: Table[Any, Any]) -> None:
    events = list(dict.fromkeys(event for row in transitions.values() for event in row))
    body = [
        [f"**{state}**", *(row.get(event, "") for event in events)]
        for state, row in transitions.items()
    ]
    demand(table(["", *events], body), of="docs/architecture.md")


HOW = {
    How.OWN: "the router itself",
    How.GENERATE: "one worker",
    How.SUBMIT: "one worker, which owns the job from then on",
    How.OWNER: "the worker that owns it",
    How.CHANGE: "all workers",
    How.TOGETHER: "all workers, at the same moment",
    How.REFUSED: "no worker: 501 `unknown_weight_call`",
    How.GATHER: "all workers",
    How.MERGED: "all workers, as one list",
    How.ANY: "one worker",
}


CHOSEN = {How.GENERATE, How.SUBMIT, How.ANY}  # where the task says which worker


def test_the_routing_table_in_the_api() -> None:
    body = []
    for route in ROUTES:
        methods = "any" if route.methods == ("*",) else ", ".join(route.methods)
        able = f", able to do `{route.task}`" if route.task and route.how in CHOSEN else ""
        named = f" naming {', '.join(route.naming)}" if route.naming else ""
        body.append([methods, f"`{route.path}`{named}", HOW[route.how] + able])
    demand(table(["Method", "Path", "Goes to"], body), of="docs/api.md")


def test_the_endpoints_in_the_readme() -> None:
    named: set[Route] = set()
    for cells in rows(text_of("README.md")):
        for method, path in re.findall(r"`([A-Z]+) (/[^`]*)`", cells[0]):
            named.add(find(method, path))
            assert find(method, path).how is not How.ANY, f"{method} {path} is no endpoint"
    assert [r.path for r in ROUTES if r not in named and r.how is not How.ANY] == []


def codes_in_the_code() -> tuple[set[str], set[str]]:
    """The codes of errors that are answered or logged, and all strings there are."""
    codes, strings = set(), set()
    for path in (ROOT / "router").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.keyword(arg="code", value=ast.Constant(str(code))):
                    codes.add(code)
                case ast.Assign([ast.Name("default_code" | "code")], ast.Constant(str(code))):
                    codes.add(code)
                case ast.AnnAssign(ast.Name("default_code"), _, ast.Constant(str(code))):
                    codes.add(code)
                case ast.Call(ast.Attribute(attr="fail"), [_, ast.Constant(str(code)), *_]):
                    codes.add(code)
                case ast.Call(ast.Name("CutOff"), [ast.Constant(str(code)), *_]):
                    codes.add(code)
                case ast.Constant(str(string)):
                    strings.add(string)
    return codes, strings


def test_the_error_codes_in_the_api() -> None:
    text = text_of("docs/api.md").partition("\n## Errors\n")[2]
    said, answered, logged = re.split(r"^\| (?:Status|In the log) \| Code .*$", text, flags=re.M)
    body = [(cells[0], re.findall(r"`([a-z_]+)`", cells[1])) for cells in rows(answered)]
    once = [code for _, found in body for code in found]
    assert sorted(once) == sorted(set(once)), "each once"
    statuses = [status[:3] for status, _ in body]
    assert statuses == sorted(statuses), "in order"
    ended = [code for cells in rows(logged) for code in re.findall(r"`([a-z_]+)`", cells[1])]
    rowed = re.findall(r"`([a-z_]+)` \(\d{3}: ", said)
    listed = {*once, *ended, *rowed}
    codes, strings = codes_in_the_code()
    assert codes - listed == set(), "not in docs/api.md"
    assert listed - strings - codes == set(), "not in the code"


def test_the_fields_of_a_worker_in_the_api() -> None:
    text = text_of("docs/api.md").partition("\n### A worker\n")[2].partition("\n#")[0]
    listed = [name for cells in rows(text) for name in re.findall(r"`([a-z_]+)`", cells[0])]
    worker = Worker(url="http://127.0.0.1:30000", origin=Origin.REGISTERED)
    assert sorted(listed) == sorted(worker_payload(worker, Speeds(), None))


def test_the_version_of_sglang() -> None:
    assert re.findall(r"^sglang.*==(.*)$", text_of("sglang/requirements.txt"), re.M) == [VERSION]
    assert f"sglang {VERSION}" in text_of("sglang/contract.md")


def test_the_simulated_worker_has_every_endpoint_of_the_contract() -> None:
    sources = (ROOT / "sglang" / "simulated_worker").glob("*.py")
    code = "".join(source.read_text(encoding="utf-8") for source in sources)
    routes = re.findall(r'Route\(\s*"([A-Z]+)",\s*"([^"]+)"', code)
    have = {f"{method} {path.replace(':path', '')}" for method, path in routes}
    tables = " ".join(cells[0] for cells in rows(text_of("sglang/contract.md")))
    listed = set(re.findall(r"`([A-Z]+ /[^`]*)`", tables))
    assert len(listed) > 30
    assert listed - have == set()
    assert [p for p in re.findall(r"`(/[^`]*)`", tables) if f'"{p}"' not in code] == []


def test_the_faults_of_the_simulated_worker() -> None:
    text = text_of("sglang/README.md").partition("\n### Faults and log\n")[2]
    listed = [name for cells in rows(text) for name in re.findall(r"`([a-z_]+)`", cells[0])]
    assert sorted(listed) == sorted(CATALOGUE)


def test_the_example_configuration() -> None:
    flags = split_flags(
        ["--config", str(ROOT / "examples" / "router.yaml")], RouterSettings, config=True
    )
    try:
        settings = load(RouterSettings, flags)
    except SettingsError as error:
        pytest.fail(str(error))
    changed = {
        name
        for name in ("port", "host", "timeout", "health_check_interval", "shutdown_timeout")
        if getattr(settings, name) != getattr(RouterSettings(), name)
    }
    assert not changed, "it shows the defaults"
    assert len(settings.worker_urls) == 2


def test_the_commands_of_the_readme() -> None:
    readme, script = text_of("README.md"), text_of(".ci/run")
    blocks = re.findall(r"^```\w*\n(.*?)^```", readme, re.M | re.S)
    assert blocks[0] == "python3 build_zipapp.py && python3 dist/router.pyz demo\n"
    tests = next(block for block in blocks if "nox" in block)
    assert script.endswith(tests), "the README's second command is what .ci/run runs"
