"""The commands that need no running router: the router, the demo, tools for files."""

from __future__ import annotations

from ..command import Command
from ..program import PROG


def _settings_of_router() -> type:
    from ..settings import RouterSettings

    return RouterSettings


def _settings_of_demo() -> type:
    from ..settings import DemoSettings

    return DemoSettings


def _serve(arguments: list[str]) -> int:
    from . import serve

    return serve.serve(arguments)


def _demo(arguments: list[str]) -> int:
    from . import serve

    return serve.demo(arguments)


def _check_config(arguments: list[str]) -> int:
    from . import check_config

    return check_config.check(arguments)


def _reap(arguments: list[str]) -> int:
    from . import state

    return state.reap(arguments)


def _state(arguments: list[str]) -> int:
    from . import state

    return state.state(arguments)


def _simulate_worker(arguments: list[str]) -> int:
    from . import worker

    return worker.simulate(arguments)


COMMANDS = (
    Command(
        "serve",
        "run the router; the default command",
        _serve,
        usage=("[--config FILE] [flags]",),
        about="Run the router until Ctrl-C or SIGTERM. The word 'serve' may be left out.",
        flags=_settings_of_router,
        config=True,
        notes="Times are in seconds, or have a unit: 500ms, 30s, 5m, 1h. Sizes are in bytes, or"
        " have a unit: 64KiB, 64MiB, 1GiB (64M means 64MiB). Keys of the file are flag names"
        " without the leading dashes, such as 'health-check-interval: 5s'. --no-verbose turns off"
        " the switch verbose, even if the file turns the switch on.",
        examples=(
            f"{PROG} --worker-urls http://10.0.0.5:30000 http://10.0.0.6:30000",
            f"{PROG} --config router.yaml --port 8080 --verbose",
            "curl http://localhost:30080/health",
            "curl -X POST 'http://localhost:30080/workers?url=http://10.0.0.7:30000'",
        ),
        status="0 after a clean stop, 1 if the router could not start, 2 if the settings or the"
        " state directory cannot be used.",
    ),
    Command(
        "demo",
        "run a router with simulated workers; needs no GPU",
        _demo,
        about="Start a router with simulated workers that answer as SGLang workers do, and print"
        " commands to try. Ctrl-C stops the router and the workers. No GPU is needed.",
        flags=_settings_of_demo,
        examples=(f"{PROG} demo", f"{PROG} demo --workers 4 --port 0", f"{PROG} demo --check"),
        status="0 after a clean stop or a passed --check, 1 if the start or the check failed, 2 for"
        " wrong flags.",
    ),
    Command(
        "check-config",
        "check a configuration file, as 'nginx -t' does",
        _check_config,
        ("FILE",),
        about="Check a file for 'serve --config', with its launchers and all files that it names,"
        " and print the file, line and key of each mistake. Nothing is started.",
        status="0 if the file is good, 1 if not, 2 for wrong arguments.",
    ),
    Command(
        "reap",
        "end the workers that a killed router left running",
        _reap,
        ("DIR",),
        about="End the workers that a router with this --state-dir launched and left running,"
        " because the router was killed or had --keep-workers. Stop the router first.",
        status="0 if no worker is left, 1 if the directory does not exist or workers on other"
        " machines are left, 2 if the directory cannot be used.",
    ),
    Command(
        "state",
        "print, verify or repair the state that a router keeps on disk",
        _state,
        ("show|check|repair", "DIR"),
        usage=("show DIR [TABLE]", "check DIR", "repair DIR [--dry-run]"),
        about="Inspect or repair the state that a router keeps in its --state-dir. 'show' and"
        " 'check' change nothing, and work while a router runs. 'repair' is for a directory that"
        " the router refuses to use; stop the router first.",
        entries=(
            ("show", "print all tables, or all rows of TABLE; without TABLE, only count assets"),
            ("check", "verify every file, and print a line for each"),
            (
                "repair",
                "keep all readable rows, list what is lost, and move the original files to a"
                " subdirectory; with --dry-run, only list",
            ),
        ),
        status="0 if no error was found, 1 if the state cannot be read or 'check' found damage, 2"
        " for wrong arguments, or if a router uses the directory that 'repair' is to repair.",
    ),
    Command(
        "simulate-worker",
        "run one simulated worker; takes the flags of 'sglang serve'",
        _simulate_worker,
        raw=True,
    ),
)
