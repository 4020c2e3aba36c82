"""Everything that is checked before a change goes in: `.venv/bin/nox`, or one part: `nox -s tests`.

    lint     ruff: rules and formatting (`nox -s fix` repairs what it can)
    types    mypy, strict
    tests    all tests but the e2e ones, on the oldest and the newest of the Pythons below that are
             installed; PURE and SMOKE on the others
    build    dist/router.pyz
    e2e      the tests that drive dist/router.pyz from outside

Only when named:

    fix      repairs style: ruff's own repairs, and formatting
    lock     renews the lock files after a change of the dependencies in pyproject.toml; keeps the
             versions that still fit. `nox -s lock -- --upgrade` takes the newest ones.
    bench    the benchmarks
    browser  the live page in Chromium; with PICTURE=docs/dashboard.png it renews that picture
    crash    kills the router at random under load, fifty times over
    flaky    the tests five times over, with other random examples each time
    chaos    processes that die, freeze, sleep and return under load, for a minute (CHAOS_SECONDS);
             the tests do it for ten seconds
    fuzz     spoilt bytes of clients and workers, for ten minutes (FUZZ_SECONDS, FUZZ_CASES,
             FUZZ_SEED, FUZZ_BATCH);
             the tests have fixed examples
    simulate the router in a simulated world, for ten minutes (SIMULATE_SECONDS, SIMULATE_SEED);
             the tests have fixed seeds
    faults   which seeds of the simulated world find which fault of the router, should it be put
             back (docs/reliability.md); half an hour, `-- --themed` takes ten minutes
    real     the worker contract, and the router, on real SGLang workers on this machine's CPU;
             installs 1.7 GB of packages the first time (tests/contract/real/README.md)
"""

import os
import shutil
import sys
from pathlib import Path

import nox

if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit(f"Make .venv with Python 3.11 or later; {sys.executable} is older.")

RUNNING = f"{sys.version_info[0]}.{sys.version_info[1]}"
PYTHONS = sorted({"3.11", "3.12", "3.13", "3.14", RUNNING}, key=lambda v: int(v.split(".")[1]))
RUNTIME = "requirements.lock"
DEVELOPMENT = "requirements-dev.lock"
PYZ = Path(__file__).parent / "dist" / "router.pyz"

# A Python between the oldest and the newest rarely does what neither of the two does.
SMOKE = "tests/integration/api"
# These use a processor all the time; the others wait for most of theirs.
PURE = ["tests/unit", "tests/property"]
TWO = ("-n", "2", "--dist", "worksteal")
THREE = ("-n", "3", "--dist", "worksteal")

# pyenv keeps all Pythons but the chosen one off the PATH.
PYENV = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
os.environ["PATH"] = os.pathsep.join([os.environ["PATH"], *map(str, sorted(PYENV.glob("3.*/bin")))])

INSTALLED = [v for v in PYTHONS if v == RUNNING or shutil.which(f"python{v}")]

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_venv = "yes"
nox.options.download_python = "never"
nox.options.error_on_missing_interpreters = False


def install(session: nox.Session) -> None:
    session.install("--quiet", "--require-hashes", "-r", RUNTIME, "-r", DEVELOPMENT)


@nox.session
def lint(session: nox.Session) -> None:
    install(session)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session(default=False)
def fix(session: nox.Session) -> None:
    install(session)
    session.run("ruff", "check", "--fix", ".")
    session.run("ruff", "format", ".")


@nox.session
def types(session: nox.Session) -> None:
    install(session)
    session.run("mypy")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    install(session)
    if session.posargs:
        session.run("pytest", "--ignore=tests/e2e", "--ignore=tests/browser", *session.posargs)
        return
    session.run("pytest", *TWO, *PURE)
    whole = session.python in (INSTALLED[0], INSTALLED[-1])
    others = [f"--ignore={folder}" for folder in (*PURE, "tests/e2e", "tests/browser")]
    session.run("pytest", *THREE, *(others if whole else [SMOKE]))


@nox.session(python=False)
def build(session: nox.Session) -> None:
    session.run(sys.executable, "build_zipapp.py", "--output", str(PYZ))


@nox.session(requires=["build"])
def e2e(session: nox.Session) -> None:
    install(session)
    session.run("pytest", *THREE, "tests/e2e", *session.posargs, env={"ROUTER_PYZ": str(PYZ)})


@nox.session(default=False)
def lock(session: nox.Session) -> None:
    session.install("uv")
    command = ["uv", "pip", "compile", "--quiet", "--no-config", "--universal"]
    # No annotations, no index addresses: the same file whoever makes it, wherever.
    command += ["--generate-hashes", "--no-annotate", "--no-emit-index-url"]
    command += ["--python-version", "3.11", *session.posargs]
    header = {"UV_CUSTOM_COMPILE_COMMAND": "nox -s lock"}
    session.run(*command, "pyproject.toml", "-o", RUNTIME, env=header)
    session.run(*command, "--group", "dev", "-c", RUNTIME, "-o", DEVELOPMENT, env=header)


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    install(session)
    benchmarks = sorted(Path("tests/benchmarks").glob("*.py"))
    if not benchmarks:
        session.skip("there are no benchmarks yet")
    for benchmark in benchmarks:
        session.run("python", str(benchmark), *session.posargs)


@nox.session(default=False)
def browser(session: nox.Session) -> None:
    install(session)
    session.run("pytest", "tests/browser", *session.posargs)


@nox.session(default=False, requires=["build"])
def real(session: nox.Session) -> None:
    install(session)
    folder = Path("tests/contract/real")
    lists = [folder / "requirements.txt", folder / "requirements-nodeps.txt"]
    # An environment of its own: what sglang needs and what the router has do not go together.
    environment = Path(session.virtualenv.location).resolve() / "sglang"
    python = environment / "bin" / "python"
    wanted = "".join(path.read_text(encoding="utf-8") for path in lists)
    stamp = environment / "installed.txt"
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != wanted:
        session.run(sys.executable, "-m", "virtualenv", "--clear", str(environment), external=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--only-binary", ":all:"]
        session.run(*pip, "-r", str(lists[0]), external=True)
        session.run(*pip, "--no-deps", "-r", str(lists[1]), external=True)
        stamp.write_text(wanted, encoding="utf-8")
    session.run(
        *("python", str(folder / "fleet.py"), "--python", str(python)),
        *("--state", str(environment.parent / "workers"), "--"),
        *("pytest", "tests/contract", *session.posargs),
        env={"ROUTER_PYZ": str(PYZ)},
    )


@nox.session(default=False, requires=["build"])
def crash(session: nox.Session) -> None:
    install(session)
    rounds = os.environ.get("CRASH_ROUNDS", "50")
    env = {"ROUTER_PYZ": str(PYZ), "CRASH_ROUNDS": rounds}
    session.run("pytest", "-s", "tests/e2e/test_crash.py", *session.posargs, env=env)


@nox.session(default=False)
def chaos(session: nox.Session) -> None:
    install(session)
    seconds = os.environ.get("CHAOS_SECONDS", "60")
    session.run("pytest", "-s", "tests/chaos", *session.posargs, env={"CHAOS_SECONDS": seconds})


@nox.session(default=False)
def fuzz(session: nox.Session) -> None:
    install(session)
    seconds = os.environ.get("FUZZ_SECONDS", "600")
    session.run("pytest", "-s", "tests/fuzz", *session.posargs, env={"FUZZ_SECONDS": seconds})


@nox.session(default=False)
def simulate(session: nox.Session) -> None:
    install(session)
    seconds, seed = (os.environ.get(f"SIMULATE_{n}") for n in ("SECONDS", "SEED"))
    first = [] if seed is None else ["--seed", seed]
    session.run(
        *("python", "-m", "tests.simulation", "--seconds", seconds or "600", "--keep-going"),
        *("--hours", "1", "--calm", "30"),
        *(*first, *session.posargs),
    )


@nox.session(default=False)
def faults(session: nox.Session) -> None:
    install(session)
    session.run(
        *("python", "-m", "tests.simulation", "--fault", "all", "--hours", "0.01"),
        *("--seed", "1", "--seeds", "60", *session.posargs),
    )


@nox.session(default=False)
def flaky(session: nox.Session) -> None:
    install(session)
    for _ in range(5):
        session.run("pytest", "--ignore=tests/e2e", *session.posargs, env={"EXPLORE": "1"})
