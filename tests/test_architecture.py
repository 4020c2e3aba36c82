"""The rules of the layout that a machine can keep: who imports whom, and what nobody calls.

Read from the source with `ast`, so that a lazy import inside a function counts as well.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from attrs import field, frozen

ROOT = Path(__file__).resolve().parent.parent

# Rooms of `router/`, top to bottom: imports run downward only. Rooms of one row do not import one
# another, but for the pairs below.
LAYERS = [
    {"__main__"},
    {"cli"},
    {"commands"},
    {"demo"},
    {"service", "terminal"},
    {"server", "web", "control", "launch", "relay"},
    {"dispatch"},
    {"store", "observe", "net"},
    {"pool", "settings"},
    {"boundary", "front"},
    {"backoff", "bus"},
    {"command", "errors", "init", "program", "text", "threads", "wall", "__init__"},
]
SAME_ROW = {("web", "control")}
ROW = {room: row for row, rooms in enumerate(LAYERS) for room in rooms}

# The deciding core does no I/O, reads no clock and writes no log.
NOT_IN_POOL = {"trio", "httpx", "quart", "hypercorn", "time", "datetime", "logging"}

MAY_PRINT = (
    "router/cli.py",
    "router/commands/",
    "router/demo/",
    "router/terminal/",
    "sglang/simulated_worker/cli.py",
)
MAY_TELL_THE_TIME = ("router/wall.py", "router/launch/output.py")
MAY_PARSE_FLAGS = ("router/cli.py", "sglang/simulated_worker/cli.py")
FLAGS = {"args", "arguments", "namespace", "options"}
MAX_LINES = 450


@frozen
class Import:
    """One import: the module meant (`router.pool.ids`), and whether loading the file runs it."""

    target: str
    line: int
    at_load: bool


@frozen
class Module:
    name: str
    path: str
    source: str
    tree: ast.Module
    imports: list[Import] = field(factory=list)

    @property
    def room(self) -> str:
        """The part of the layout that it belongs to."""
        return [*self.name.split("."), "__init__"][1]


def read(root: Path) -> dict[str, Module]:
    """All modules of `router/` and `sglang/` under their import names."""
    modules = {}
    for base in (root, root / "sglang"):
        for path in sorted(base.glob("*/**/*.py")):
            names = path.relative_to(base).with_suffix("").parts
            if base == root and names[0] != "router" and names != ("sglang", "__init__"):
                continue
            name = ".".join(names[:-1] if names[-1] == "__init__" else names)
            source = path.read_text(encoding="utf-8")
            modules[name] = Module(
                name, path.relative_to(root).as_posix(), source, ast.parse(source)
            )
    for module in modules.values():
        is_package = module.path.endswith("__init__.py")
        package = module.name if is_package else module.name.rpartition(".")[0]
        for node, at_load in statements(module.tree):
            for target in targets(node, package, modules):
                module.imports.append(Import(target, node.lineno, at_load))
    return modules


def statements(tree: ast.Module) -> Iterator[tuple[ast.stmt, bool]]:
    """Every statement, and whether it runs when the module is loaded."""
    pending: list[tuple[ast.AST, bool]] = [(tree, True)]
    while pending:
        node, at_load = pending.pop()
        for child in ast.iter_child_nodes(node):
            runs = at_load and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                runs = runs and child in node.orelse
            pending.append((child, runs))
            if isinstance(child, ast.stmt):
                yield child, runs


def targets(node: ast.stmt, package: str, modules: dict[str, Module]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*above, base] if base else above)
        for alias in node.names:
            inner = f"{base}.{alias.name}"
            yield inner if inner in modules or base in {"threading", "time"} else base


Rule = Callable[[dict[str, Module]], Iterator[str]]
RULES: list[Rule] = []


def rule(check: Rule) -> Rule:
    RULES.append(check)
    return check


def room_of(target: str, modules: dict[str, Module]) -> str | None:
    """The room that an import reaches; None outside of `router`."""
    if target.split(".")[0] != "router":
        return None
    return modules[target].room if target in modules else [*target.split("."), "__init__"][1]


def in_package(target: str, package: str) -> bool:
    return target == package or target.startswith(f"{package}.")


@rule
def imports_run_downward(modules: dict[str, Module]) -> Iterator[str]:
    for module in modules.values():
        if not module.path.startswith("router/"):
            continue
        if module.room not in ROW:
            yield f"{module.path}: the room {module.room!r} has no place in LAYERS"
            continue
        for found in module.imports:
            room = room_of(found.target, modules)
            if room is None or room == module.room:
                continue
            if room not in ROW:
                yield f"{module.path}:{found.line}: {found.target} has no place in LAYERS"
            elif ROW[room] <= ROW[module.room] and (module.room, room) not in SAME_ROW:
                yield f"{module.path}:{found.line}: {module.room} must not import {room}"


@rule
def no_cycles_at_load(modules: dict[str, Module]) -> Iterator[str]:
    done: set[str] = set()

    def visit(name: str, way: list[str]) -> Iterator[str]:
        if name in way:
            yield "cycle: " + " -> ".join([*way[way.index(name) :], name])
        elif name not in done:
            for found in modules[name].imports:
                if found.at_load and found.target in modules:
                    yield from visit(found.target, [*way, name])
            done.add(name)

    for name in modules:
        yield from visit(name, [])


@rule
def pool_does_no_io(modules: dict[str, Module]) -> Iterator[str]:
    for module in modules.values():
        if in_package(module.name, "router.pool"):
            for found in module.imports:
                if found.target.split(".")[0] in NOT_IN_POOL:
                    yield f"{module.path}:{found.line}: pool must not import {found.target}"


@rule
def the_worker_side_stands_alone(modules: dict[str, Module]) -> Iterator[str]:
    for module in modules.values():
        if module.path == "sglang/__init__.py":
            yield "sglang/__init__.py would hide the real sglang package"
        if module.path.startswith("sglang/"):
            for found in module.imports:
                if found.target.split(".")[0] in {"router", "sglang"}:
                    yield f"{module.path}:{found.line}: sglang/ must not import {found.target}"


@rule
def some_imports_have_one_place(modules: dict[str, Module]) -> Iterator[str]:
    for module in modules.values():
        for found in module.imports:
            where = f"{module.path}:{found.line}:"
            if found.target.split(".")[0] in {"asyncio", "requests"}:
                yield f"{where} {found.target} is banned"
            if found.target in {"threading.Thread", "time.time"}:
                yield f"{where} {found.target} is banned"
            if found.target == "argparse" and module.path not in MAY_PARSE_FLAGS:
                yield f"{where} flags are parsed in {' and '.join(MAY_PARSE_FLAGS)} only"
            if (
                in_package(found.target, "hypercorn")
                and module.path.startswith("router/")
                and module.room != "server"
            ):
                yield f"{where} hypercorn is known to router/server/ only"


@rule
def some_calls_have_no_place(modules: dict[str, Module]) -> Iterator[str]:
    for module in modules.values():
        for node in ast.walk(module.tree):
            match node:
                case ast.Attribute() if ast.unparse(node) in {"time.time", "threading.Thread"}:
                    yield f"{module.path}:{node.lineno}: {ast.unparse(node)} is banned"
                case ast.Attribute() if ast.unparse(node) == "datetime.now":
                    if module.path.startswith("router/") and module.path not in MAY_TELL_THE_TIME:
                        yield f"{module.path}:{node.lineno}: the time of day is wall.seconds()"
                case ast.Call(func=ast.Name("print")) if not module.path.startswith(MAY_PRINT):
                    yield f"{module.path}:{node.lineno}: print is for terminal front ends"
                case ast.Call(func=ast.Name("getattr"), args=[ast.Name(name), *_]) if name in FLAGS:
                    yield f"{module.path}:{node.lineno}: settings have attributes; no getattr"


@rule
def files_stay_short(modules: dict[str, Module]) -> Iterator[str]:
    for module in modules.values():
        lines = module.source.count("\n")
        if lines > MAX_LINES:
            yield f"{module.path}: {lines} lines; split it by meaning (at most {MAX_LINES})"


@pytest.mark.parametrize("check", RULES, ids=lambda check: check.__name__)
def test_the_project_keeps(check: Rule) -> None:
    assert list(check(read(ROOT))) == []


def tree(root: Path, files: dict[str, str]) -> dict[str, Module]:
    for name, source in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(source, encoding="utf-8")
    return read(root)


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({"router/pool/ids.py": "from router.dispatch import lease"}, "pool must not import disp"),
        ({"router/pool/ids.py": "from ..dispatch import lease"}, "pool must not import dispatch"),
        ({"router/pool/ids.py": "from .. import dispatch", "router/dispatch.py": ""}, "must not"),
        ({"router/pool/ids.py": "def f():\n    import router.web.app"}, "ids.py:2: pool must not"),
        ({"router/relay/a.py": "import router.control.health"}, "relay must not import control"),
        ({"router/control/a.py": "from ..web import app"}, "control must not import web"),
        ({"router/pool/a.py": "from ..settings import Settings"}, "pool must not import settings"),
        ({"router/service.py": "from . import demo", "router/demo/__init__.py": ""}, "must not"),
        ({"router/errors.py": "from .cli import main"}, "errors must not import cli"),
        ({"router/errors.py": "from .attic.box import lid"}, "router.attic.box has no place"),
        ({"router/attic/__init__.py": ""}, "room 'attic' has no place"),
        (
            {"router/pool/a.py": "from . import b", "router/pool/b.py": "from .a import c"},
            "cycle: router.pool.a -> router.pool.b -> router.pool.a",
        ),
        (
            {
                "router/pool/__init__.py": "from .a import b",
                "router/pool/a.py": "import router.pool",
            },
            "cycle: router.pool -> router.pool.a -> router.pool",
        ),
        ({"router/pool/a.py": "import trio"}, "pool must not import trio"),
        ({"router/pool/a.py": "from time import monotonic"}, "pool must not import time"),
        ({"router/pool/a.py": "import logging.handlers"}, "pool must not import logging"),
        ({"sglang/__init__.py": ""}, "would hide the real sglang"),
        ({"sglang/simulated_worker/a.py": "import router.errors"}, "must not import router"),
        ({"router/launch/a.py": "import asyncio"}, "asyncio is banned"),
        ({"router/launch/a.py": "from asyncio.subprocess import PIPE"}, "asyncio.subprocess is"),
        ({"sglang/simulated_worker/a.py": "import requests"}, "requests is banned"),
        ({"router/launch/a.py": "from threading import Thread"}, "threading.Thread is banned"),
        ({"router/launch/a.py": "import threading\nthreading.Thread()"}, "threading.Thread is"),
        ({"router/launch/a.py": "import argparse"}, "flags are parsed in"),
        ({"router/relay/a.py": "import hypercorn.config"}, "hypercorn is known to"),
        ({"router/launch/a.py": "import time\nage = time.time()"}, "a.py:2: time.time is banned"),
        ({"router/launch/a.py": "from time import time"}, "time.time is banned"),
        ({"router/store/a.py": "age = datetime.now()"}, "the time of day is wall.seconds()"),
        ({"router/launch/a.py": "print('hello')"}, "print is for terminal front ends"),
        ({"router/cli.py": "def f(args):\n    return getattr(args, 'x', 1)"}, "no getattr"),
        ({"router/launch/a.py": "x = 1\n" * (MAX_LINES + 1)}, "split it by meaning"),
    ],
)
def test_a_breach_is_seen(tmp_path: Path, files: dict[str, str], complaint: str) -> None:
    modules = tree(tmp_path, files)

    complaints = [words for check in RULES for words in check(modules)]

    assert len(complaints) == 1
    assert complaint in complaints[0]


def test_what_is_allowed_passes(tmp_path: Path) -> None:
    modules = tree(
        tmp_path,
        {
            "router/__init__.py": "",
            "router/__main__.py": "from router.cli import main",
            "router/cli.py": "import argparse\nfrom . import __version__, service\nprint('usage')",
            "router/demo/__init__.py": "from ..service import run\nprint('demo')",
            "router/service.py": "from . import server\nfrom .web import app",
            "router/server/__init__.py": "import hypercorn.config\nfrom .http1 import Exchange",
            "router/server/http1.py": "from hypercorn.trio.worker_context import WorkerContext",
            "router/web/app.py": "from ..control import health\nfrom ..pool.ids import worker_id",
            "router/control/health.py": "import trio\nfrom ..pool import ids",
            "router/pool/ids.py": (
                "from typing import TYPE_CHECKING\nfrom .worker import Worker\n"
                "if TYPE_CHECKING:\n    from . import ids2\n"
            ),
            "router/pool/ids2.py": "from . import ids",
            "router/pool/worker.py": "def late():\n    from . import ids\n    return ids",
            "router/launch/local.py": "import time, threading\nnow = time.monotonic()",
            "sglang/simulated_worker/cli.py": "import argparse, hypercorn.trio\nprint('ready')",
            "sglang/simulated_worker/app.py": "from simulated_worker import cli",
        },
    )

    assert [words for check in RULES for words in check(modules)] == []
