"""The command line: argv to settings to one command. Nothing else parses flags.

Each command imports what it needs when it runs, so that `--help`, `--version` and the children of
`demo` start at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from . import init, program
from .errors import Problem, SettingsError, StartError

if TYPE_CHECKING:
    from .settings import RouterSettings

PROG = "sglang-d-router"

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: that of the process) and return its exit status.

    0: done. 1: could not start, or `demo --check` failed. 2: wrong flags or settings, all of them
    told on stderr. 130: interrupted before the service took over.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = "serve"
    try:
        if arguments and not arguments[0].startswith("-"):
            command = arguments.pop(0)
            if command not in _COMMANDS:
                raise SettingsError([_unknown_command(command)])
        elif _asks_for(arguments, "--help", "-h"):
            return _show(_help())
        if command in _LASTING and init.needed() and (status := init.run()) is not None:
            return status
        return _COMMANDS[command](arguments)
    except SettingsError as error:
        for problem in error.problems:
            _complain(str(problem))
        known = f" {command}" if command in _COMMANDS else ""
        print(f"Try '{PROG}{known} --help'.", file=sys.stderr)
        return EXIT_USAGE
    except StartError as error:
        _complain(str(error))
        return error.status
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _serve(arguments: list[str]) -> int:
    from .settings import RouterSettings, load, split_flags, with_credentials, with_launchers

    if _asks_for(arguments, "--version"):
        return _show(_version())
    if _asks_for(arguments, "--help", "-h"):
        return _show(_serve_help())
    flags = split_flags(arguments, RouterSettings, config=True)
    steps = [with_launchers, with_credentials]
    read = partial(load, RouterSettings, flags, checks=[_bad_worker_urls], steps=steps)
    settings = read()

    from . import service

    return service.run(settings, read)


def _demo(arguments: list[str]) -> int:
    from .settings import DemoSettings, load, split_flags

    if _asks_for(arguments, "--version"):
        return _show(_version())
    if _asks_for(arguments, "--help", "-h"):
        return _show(_demo_help())
    settings = load(DemoSettings, split_flags(arguments, DemoSettings))

    from . import demo

    return demo.run(settings)


def _simulate_worker(arguments: list[str]) -> int:
    """Hand all arguments to the simulated worker, which shares no code with the router."""
    import importlib.util
    import os

    name = f"{__package__}.simulated_worker"  # of a copy that pip installed
    if importlib.util.find_spec(name) is None:
        name = "simulated_worker"
        if importlib.util.find_spec(name) is None:
            # In a checkout it lies in a folder called sglang. That one is appended, and not
            # imported as a package, so that it never hides the real sglang.
            sys.path.append(os.path.join(program.ROOT, "sglang"))
    try:
        worker = importlib.import_module(f"{name}.cli")
    except ModuleNotFoundError as error:
        if error.name not in (name, f"{name}.cli"):
            raise
        raise StartError("this copy of the program does not contain the simulated worker") from None
    return int(worker.main(arguments) or 0)


def _state(arguments: list[str]) -> int:
    """Look at a state directory, or repair it."""
    from pathlib import Path

    from .errors import describe
    from .store import repair, showing

    if _asks_for(arguments, "--help", "-h"):
        return _show(_state_help())
    match arguments:
        case ["show", folder, *table] if len(table) <= 1:
            for line in showing.show(Path(folder), *table):
                print(line)
            return EXIT_OK
        case ["check", folder]:
            showing.look_for(Path(folder))
            lines, good = showing.check(Path(folder))
            for line in lines:
                print(line)
            return EXIT_OK if good else EXIT_FAILED
        case ["repair", folder] | ["repair", folder, "--dry-run"] | ["repair", "--dry-run", folder]:
            showing.look_for(Path(folder))
            try:
                for line in repair.repair(Path(folder), dry_run="--dry-run" in arguments):
                    print(line)
            except OSError as error:
                raise StartError(f"{folder} cannot be repaired: {describe(error)}") from error
            return EXIT_OK
    expected = "expected 'show DIR [TABLE]', 'check DIR' or 'repair DIR [--dry-run]'"
    raise SettingsError([Problem("state", expected)])


def _reap(arguments: list[str]) -> int:
    """End the workers that a router has left running."""
    from pathlib import Path

    if _asks_for(arguments, "--help", "-h"):
        return _show(_reap_help())
    if len(arguments) != 1:
        raise SettingsError([Problem("reap", "expected exactly one argument, the state directory")])

    from . import service

    ended, unreached = service.reap(Path(arguments[0]))
    for name in sorted(ended):
        print(f"{name} was ended")
    for name in sorted(unreached):
        print(f"{name} does not run on this machine and was not ended")
    if not ended and not unreached:
        print("found no running workers")
    return EXIT_FAILED if unreached else EXIT_OK


_COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "serve": _serve,
    "demo": _demo,
    "reap": _reap,
    "state": _state,
    "simulate-worker": _simulate_worker,
}

_LASTING = ("serve", "demo")  # they start other processes


def _bad_worker_urls(settings: RouterSettings) -> Iterator[Problem]:
    """A check for `load`: pool and settings are neighbours that do not know each other."""
    from .pool.ids import BadWorkerURL, normalise_url
    from .pool.pools import DEFAULT

    named = [(f"worker_urls[{i}]", url, "") for i, url in enumerate(settings.worker_urls)]
    for index, each in enumerate(settings.workers):
        named.append((f"workers[{index}].url", each.url, each.pool if each.pool != DEFAULT else ""))
    for index, members in enumerate(settings.pool):
        named += [(f"pool[{index}]", url, members.name) for url in members.urls]
    pools: dict[str, str] = {}
    for place, url, pool in named:
        try:
            normal = normalise_url(url)
        except BadWorkerURL as error:
            yield Problem(place, error.message)
            continue
        if pool and pools.setdefault(normal, pool) != pool:
            yield Problem(place, f"{url} is also in the pool {pools[normal]}")


def _unknown_command(command: str) -> Problem:
    from .settings.kinds import did_you_mean

    hint = did_you_mean(command, list(_COMMANDS))
    return Problem(command, f"unknown command{hint}; expected one of {', '.join(_COMMANDS)}")


def _asks_for(arguments: Sequence[str], *flags: str) -> bool:
    return any(argument in flags for argument in arguments)


def _show(text: str) -> int:
    print(text, end="")
    return EXIT_OK


def _complain(sentence: str) -> None:
    print(f"{PROG}: error: {sentence}", file=sys.stderr)


def _version() -> str:
    """The program, its Python, and the packages it brings along (or, unzipped, runs on)."""
    import platform
    from importlib import metadata

    from . import __version__

    packages: dict[str, str] = {}
    for distribution in metadata.distributions():
        place = str(distribution.locate_file(""))
        if program.ARCHIVE is None or place.startswith(program.ARCHIVE):
            packages.setdefault(distribution.name.lower().replace("_", "-"), distribution.version)
    if program.ARCHIVE is None:
        packages = {name: packages[name] for name in _LIBRARIES if name in packages}
    python = f"{platform.python_implementation()} {platform.python_version()}"
    lines = [
        f"{PROG} {__version__}",
        f"{python} ({sys.executable})",
        platform.platform(),
        f"{'bundled' if program.ARCHIVE else 'installed'} packages:",
        *(f"  {name} {packages[name]}" for name in sorted(packages)),
    ]
    return "\n".join(lines) + "\n"


# What the router imports. Only asked for outside an archive, where everything else installed
# beside it is no part of it.
_LIBRARIES = (
    "attrs",
    "cattrs",
    "h11",
    "httpx",
    "hypercorn",
    "pyyaml",
    "quart",
    "quart-trio",
    "rich",
    "trio",
    "wsproto",
)


def _width() -> int:
    import shutil

    return min(shutil.get_terminal_size().columns, 100)


def _help() -> str:
    from .settings import entry

    width = _width()
    commands = {
        "serve": "run the router; the default command",
        "demo": "run a router with simulated workers; needs no GPU",
        "reap": "end the workers that a killed router left running",
        "state": "print, verify or repair the state that a router keeps on disk",
        "simulate-worker": "run one simulated worker; takes the flags of 'sglang serve'",
    }
    return (
        f"Usage: {PROG} [serve] [flags]\n"
        f"       {PROG} demo [flags]\n"
        f"       {PROG} reap DIR\n"
        f"       {PROG} state show|check|repair DIR\n"
        f"       {PROG} simulate-worker --model-path MODEL --port PORT [flags]\n\n"
        "A router in front of SGLang diffusion workers: image, video and mesh generation.\n\n"
        "Commands:\n"
        + "".join(entry(name, text, width) for name, text in commands.items())
        + "\n"
        + _serve_flags(width)
    )


def _serve_help() -> str:
    return (
        f"Usage: {PROG} [serve] [--config FILE] [flags]\n\n"
        "Run the router until Ctrl-C or SIGTERM.\n\n" + _serve_flags(_width())
    )


def _serve_flags(width: int) -> str:
    from .settings import RouterSettings, flag_help

    return (
        flag_help(RouterSettings, width, config=True)
        + "\n"
        + _notes(
            width,
            "Times are in seconds, or have a unit: 500ms, 30s, 5m, 1h. Sizes are in bytes, or have"
            " a unit: 64KiB, 64MiB, 1GiB (64M means 64MiB). Keys of the file are flag names without"
            " the leading dashes, such as 'health-check-interval: 5s'. --no-verbose turns off the"
            " switch verbose, even if the file turns the switch on.",
        )
        + "\n"
        "Examples:\n"
        f"  {PROG} --worker-urls http://10.0.0.5:30000 http://10.0.0.6:30000\n"
        f"  {PROG} --config router.yaml --port 8080 --verbose\n"
        "  curl http://localhost:30080/health\n"
        "  curl -X POST 'http://localhost:30080/workers?url=http://10.0.0.7:30000'\n"
        "\n"
        "Exit status: 0 after a clean stop, 1 if the router could not start, 2 if the settings or"
        " the\nstate directory cannot be used.\n"
    )


def _demo_help() -> str:
    from .settings import DemoSettings, flag_help

    width = _width()
    return (
        f"Usage: {PROG} demo [flags]\n\n"
        + _notes(
            width,
            "Start a router with simulated workers that answer as SGLang workers do, and print"
            " commands to try. Ctrl-C stops the router and the workers. No GPU is needed.",
        )
        + "\n"
        + flag_help(DemoSettings, width)
        + "\nExamples:\n"
        f"  {PROG} demo\n"
        f"  {PROG} demo --workers 4 --port 0\n"
        f"  {PROG} demo --check\n"
        "\n"
        "Exit status: 0 after a clean stop or a passed --check, 1 if the start or the check failed,"
        "\n2 for wrong flags.\n"
    )


def _state_help() -> str:
    from .settings import entry

    width = _width()
    return (
        f"Usage: {PROG} state show DIR [TABLE]\n"
        f"       {PROG} state check DIR\n"
        f"       {PROG} state repair DIR [--dry-run]\n\n"
        + _notes(
            width,
            "Inspect or repair the state that a router keeps in its --state-dir. 'show' and 'check'"
            " change nothing, and work while a router runs. 'repair' is for a directory that the"
            " router refuses to use; stop the router first.",
        )
        + "\n"
        + entry(
            "show",
            "print all tables, or all rows of TABLE; without TABLE, only count assets",
            width,
        )
        + entry("check", "verify every file, and print a line for each", width)
        + entry(
            "repair",
            "keep all readable rows, list what is lost, and move the original files to a"
            " subdirectory; with --dry-run, only list",
            width,
        )
        + "\nExit status: 0 if no error was found, 1 if the state cannot be read or 'check' found"
        " damage,\n2 for wrong arguments, or if a router uses the directory that 'repair' is to"
        " repair.\n"
    )


def _reap_help() -> str:
    return (
        f"Usage: {PROG} reap DIR\n\n"
        + _notes(
            _width(),
            "End the workers that a router with this --state-dir launched and left running, because"
            " the router was killed or had --keep-workers. Stop the router first.",
        )
        + "\nExit status: 0 if no worker is left, 1 if the directory does not exist or workers on"
        " other\nmachines are left, 2 if the directory cannot be used.\n"
    )


def _notes(width: int, text: str) -> str:
    import textwrap

    return textwrap.fill(text, max(width, 40), break_on_hyphens=False) + "\n"
