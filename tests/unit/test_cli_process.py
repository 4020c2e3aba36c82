"""The program as a process: its ways to start, what it loads, and starting itself again."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import router

ROOT = Path(router.__file__).parents[1]
ENTRY = str(ROOT / "router" / "__main__.py")


def run(*command: str, cwd: Path, path: str = "") -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if path:
        environment["PYTHONPATH"] = path
    return subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A single file as the build makes it, but with no library in it save the shell of one."""
    path = tmp_path_factory.mktemp("archive") / "router.pyz"
    show = "from router.program import self_command\nimport os; os.chdir('/'); "
    with zipfile.ZipFile(path, "w") as made:
        for file in sorted((ROOT / "router").rglob("*.py")):
            made.write(file, file.relative_to(ROOT))
        made.writestr("probe-1.2.3.dist-info/METADATA", "Name: Probe\nVersion: 1.2.3\n")
        made.writestr("simulated_worker/__init__.py", "")
        made.writestr(
            "simulated_worker/cli.py",
            f"def main(args):\n    {show.replace(chr(10), chr(10) + '    ')}"
            "print(args, self_command())\n    return 4\n",
        )
        made.writestr("__main__.py", "import sys, router.cli\nsys.exit(router.cli.main())\n")
    return path


def test_wrong_flags_end_with_status_2_and_no_traceback(tmp_path: Path) -> None:
    done = run(ENTRY, "--port", "abc", "--verbos", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "sglang-d-router: error: --verbos: unknown flag (did you mean --verbose?)",
        "sglang-d-router: error: --port: expected a whole number from 0 to 65535, got 'abc'",
        "Try 'sglang-d-router serve --help'.",
    ]


def test_as_a_module(tmp_path: Path) -> None:
    done = run("-m", "router", "--version", cwd=tmp_path, path=str(ROOT))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"sglang-d-router {router.__version__}\n")


def test_as_a_script_its_own_folder_is_not_on_the_path(tmp_path: Path) -> None:
    """Else `errors`, `settings` and so on would be importable, and hide others of those names."""
    code = (
        "import runpy, sys; sys.argv = ['x', '--version'];"
        f" sys.path.insert(0, {str(ROOT / 'router')!r})\n"
        f"try: runpy.run_path({ENTRY!r}, run_name='__main__')\n"
        "except SystemExit: pass\n"
        f"assert sys.path[0] == {str(ROOT)!r}, sys.path\n"
        f"assert {str(ROOT / 'router')!r} not in sys.path\n"
    )
    done = run("-c", code, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_checkout_starts_itself_from_any_folder(tmp_path: Path) -> None:
    code = "import os, router.program as p; os.chdir('/'); print(*p.self_command(), sep='\\n')"
    done = run("-c", code, cwd=ROOT)
    command = done.stdout.splitlines()
    assert command == [sys.executable, ENTRY]
    assert run(*command[1:], "--version", cwd=tmp_path).stdout.startswith("sglang-d-router ")


def test_an_archive_starts_itself_from_any_folder(archive: Path) -> None:
    # By a relative name, from its own folder; the stand-in for the worker leaves that folder.
    done = run(archive.name, "simulate-worker", "--port", "1", cwd=archive.parent)
    assert (done.returncode, done.stderr) == (4, "")
    assert done.stdout == f"['--port', '1'] {[sys.executable, str(archive)]!r}\n"


def test_the_version_of_an_archive_tells_what_is_in_it(archive: Path, tmp_path: Path) -> None:
    done = run(str(archive), "--version", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("bundled packages:\n  probe 1.2.3\n")


def test_what_the_command_line_loads(tmp_path: Path) -> None:
    """Help, versions and children start at once: what only the service needs comes later."""
    slow = {"trio", "httpx", "quart", "hypercorn", "rich", "cattrs", "yaml", "argparse", "asyncio"}
    code = (
        "import sys; from router import cli; cli.main(['--help']);"
        f" print('LOADED', sorted({slow!r} & set(sys.modules)))"
    )
    done = run("-c", code, cwd=tmp_path, path=str(ROOT))
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "LOADED []"


def test_a_folder_of_sglang_hides_no_real_one(tmp_path: Path) -> None:
    """The simulated worker of a checkout is found without importing anything called sglang."""
    real = tmp_path / "site" / "sglang"
    real.mkdir(parents=True)
    (real / "__init__.py").write_text("raise SystemExit('the real sglang was imported')\n")
    worker = tmp_path / "checkout" / "sglang" / "simulated_worker"
    worker.mkdir(parents=True)
    (worker / "__init__.py").write_text("")
    (worker / "cli.py").write_text("def main(args):\n    print('ran', args)\n")
    code = (
        "import sys; from router import cli, program;"
        f" program.ROOT = {str(tmp_path / 'checkout')!r};"
        " sys.exit(cli.main(['simulate-worker', '-x']))"
    )
    path = os.pathsep.join([str(ROOT), str(real.parent)])
    done = run("-c", code, cwd=tmp_path, path=path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ran ['-x']\n", "")


def test_a_copy_without_the_simulated_worker_says_so(tmp_path: Path) -> None:
    code = (
        "import sys; from router import cli, program;"
        f" program.ROOT = {str(tmp_path)!r}; sys.exit(cli.main(['simulate-worker']))"
    )
    done = run("-I", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        "sglang-d-router: error: this copy of the program does not contain the simulated worker\n"
    )
