"""Build `dist/router.pyz`: the router, the simulated worker and all dependencies in one file.

Needs nothing but Python 3.11 or later with pip. The packages are those of `requirements.lock`,
hash-checked. The file holds no native code, so it runs wherever Python 3.11 or later does; byte
code is included for the Python that builds it, others compile what they import at each start.
Two builds by the same Python on the same platform give the same bytes.
"""

# No syntax newer than Python 3.6 in this file: an old Python must reach the sentence below.
import sys

if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit(
        "build_zipapp.py needs Python 3.11 or later; this is Python "
        f"{sys.version_info[0]}.{sys.version_info[1]} ({sys.executable})."
    )

import argparse
import contextlib
import hashlib
import importlib.metadata
import io
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
import tomllib
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent
LOCK = "requirements.lock"
# Package in the archive -> its place in the checkout.
OWN_PACKAGES = {"router": "router", "simulated_worker": "sglang/simulated_worker"}

NATIVE = frozenset({".so", ".pyd", ".dylib", ".dll"})
USELESS = frozenset({".c", ".cpp", ".h", ".pxd", ".pyc", ".pyi", ".pyo", ".pyx"})
LEFT_OUT_FOLDERS = frozenset({"__pycache__", "_tests", "test", "tests"})
LICENCE = re.compile(r"licen[cs]e|copying|notice|authors", re.IGNORECASE)

MAIN = """\
import sys

# Reached by Pythons of any age: nothing newer than Python 2 may stand above or in this block.
if sys.version_info < (3, 11):
    sys.exit(
        "router.pyz needs Python 3.11 or later; this is Python %d.%d (%s)."
        % (sys.version_info[0], sys.version_info[1], sys.executable)
    )

if __name__ == "__main__":
    from router.cli import main

    sys.exit(main())
"""

# Prints each name before importing it: the last one printed is the one that failed.
IMPORT_ALL = """\
import importlib, sys
sys.path.insert(0, sys.argv[1])
for name in sys.stdin.read().split():
    print(name, flush=True)
    importlib.import_module(name)
"""


class BuildError(Exception):
    """The build cannot go on; the message is for the person who started it."""


class Part:
    """One installed distribution: its name, its files to keep, what was native in it."""

    def __init__(self, info: importlib.metadata.Distribution) -> None:
        self.name: str = info.metadata["Name"]
        self.version: str = info.version
        self.licence: str | None = info.metadata["License-Expression"]
        self.files: list[PurePosixPath] = []
        self.native_modules: set[str] = set()
        for file in info.files or ():
            path = PurePosixPath(file)
            if NATIVE & set(path.suffixes):
                self.native_modules.add(".".join([*path.parts[:-1], path.name.split(".")[0]]))
            elif is_kept(path):
                self.files.append(path)

    @property
    def modules(self) -> list[str]:
        """The importable top-level names, private ones only if there are no others.

        Some distributions carry a private shim for old callers that is meant to fail without its
        native part (PyYAML's `_yaml`).
        """
        names = {path.parts[0] for path in self.files if path.name == "__init__.py"}
        names |= {path.stem for path in self.files if len(path.parts) == 1 and path.suffix == ".py"}
        public = {name for name in names if not name.startswith("_")}
        return sorted(public or names)


def is_kept(path: PurePosixPath) -> bool:
    """Whether a file of an installed distribution goes into the archive.

    Of the metadata only what `importlib.metadata.version` reads and the licences: the rest
    (RECORD, INSTALLER, WHEEL, ...) differs from machine to machine.
    """
    folders = path.parts[:-1]
    if ".." in path.parts or LEFT_OUT_FOLDERS & set(folders):
        return False
    if folders and folders[0].endswith(".dist-info"):
        return path.parts[1:] == ("METADATA",) or any(map(LICENCE.match, path.parts[1:]))
    if not folders and path.suffix != ".py":
        return False
    return path.suffix not in USELESS


def pip_command(scratch: Path) -> list[str]:
    """A pip that installs for this very Python; raises `BuildError` where none can be had."""
    own = [sys.executable, "-m", "pip"]
    if succeeds([*own, "--version"], scratch):
        return own
    borrowed = scratch / "venv"
    if succeeds([sys.executable, "-m", "venv", str(borrowed)], scratch):
        folder = "Scripts" if os.name == "nt" else "bin"
        return [str(borrowed / folder / "python"), "-m", "pip"]
    raise BuildError(
        f"This Python ({sys.executable}) has no pip. Install it (Debian and Ubuntu: apt-get "
        "install python3-pip; elsewhere: python3 -m ensurepip) and run this again."
    )


def succeeds(command: list[str], folder: Path) -> bool:
    done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    return done.returncode == 0


def install(lock: Path, site: Path, scratch: Path) -> None:
    """Install what the lock pins into the folder `site`; raises `BuildError`."""
    command = [
        *pip_command(scratch),
        "install",
        *("--require-hashes", "--no-deps", "--requirement", str(lock), "--target", str(site)),
        *("--no-compile", "--no-input", "--disable-pip-version-check", "--no-color"),
    ]
    # A person's pip settings (index, proxy, certificates) hold, but not those about the place.
    environment = {**os.environ, "PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0"}
    for name in ("PIP_CONSTRAINT", "PIP_PREFIX", "PIP_ROOT", "PIP_TARGET"):
        environment.pop(name, None)
    said: list[str] = []
    with subprocess.Popen(
        command,
        cwd=scratch,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as pip:
        assert pip.stdout is not None
        for line in pip.stdout:
            said.append(line)
            if line.startswith("Collecting "):
                progress(line.split(" (from")[0].strip())
    progress("")
    if pip.returncode:
        raise BuildError(
            "".join(said[-15:])
            + f"\npip could not install the packages of {lock.name} (its last words are above)."
        )


def collect(site: Path, tree: Path) -> list[Part]:
    """Copy what is kept of every distribution installed in `site` to the folder `tree`."""
    infos = importlib.metadata.distributions(path=[str(site)])
    parts = sorted((Part(info) for info in infos), key=lambda part: part.name.lower())
    for part in parts:
        for file in part.files:
            copy(site / file, tree / file)
    return parts


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def collect_own(root: Path, tree: Path) -> str:
    """Copy the project's own packages with their data; returns the version."""
    for package, place in OWN_PACKAGES.items():
        for source in sorted((root / place).rglob("*")):
            file = source.relative_to(root / place)
            hidden = any(part.startswith(".") or part == "__pycache__" for part in file.parts)
            if source.is_file() and not hidden and file.suffix not in {".pyc", ".pyo"}:
                copy(source, tree / package / file)
    init = (root / "router" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', init, re.MULTILINE)
    if found is None:
        raise BuildError("router/__init__.py names no __version__.")
    version = found[1]
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    info = tree / f"{project['name'].replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    metadata = {
        "Metadata-Version": "2.4",
        "Name": project["name"],
        "Version": version,
        "Summary": project["description"],
        "License-Expression": project["license"],
        "License-File": "LICENSE",
        "Requires-Python": project["requires-python"],
    }
    text = "".join(f"{key}: {value}\n" for key, value in metadata.items())
    (info / "METADATA").write_text(text, encoding="utf-8", newline="\n")
    copy(root / "LICENSE", info / "licenses" / "LICENSE")
    (tree / "__main__.py").write_text(MAIN, encoding="utf-8", newline="\n")
    return version


def own_modules(tree: Path) -> list[str]:
    """Every module of the project's own packages, but not what runs when it is imported."""
    names = []
    for package in OWN_PACKAGES:
        for source in sorted((tree / package).rglob("*.py")):
            path = source.relative_to(tree).with_suffix("")
            if path.name != "__main__":
                names.append(".".join(path.parts).removesuffix(".__init__"))
    return names


def check_imports(place: Path, parts: Sequence[Part], own: Iterable[str] = ()) -> None:
    """Import every distribution, then the modules `own`, from `place` and nothing else.

    `place` is a folder or an archive.

    Raises `BuildError` naming the distribution that does not work as it was copied: one that
    needs its native part, or a package that the lock does not have.
    """
    # Those that lost something first: whoever imports them would be blamed otherwise.
    ordered = sorted(parts, key=lambda part: not part.native_modules)
    owners = {module: part.name for part in ordered for module in part.modules}
    names = [*owners, *own]
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-B", "-c", IMPORT_ALL, str(place)],
        input="\n".join(names),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return
    module = ["nothing", *done.stdout.split()][-1]
    reason = ["no reason given", *done.stderr.strip().splitlines()][-1]
    missing = re.search(r"No module named '([^']+)'", reason)
    for part in ordered:
        if missing and missing[1] in part.native_modules:
            raise BuildError(
                f"{part.name} {part.version} needs its native module {missing[1]}, which a "
                f"zip file cannot hold (importing {module}: {reason})."
            )
    culprit = owners.get(module, "the project's own code")
    raise BuildError(f"{culprit} does not work from the zip file (importing {module}: {reason}).")


def compile_tree(tree: Path) -> None:
    """Put `module.pyc` beside each `module.py`, where zipimport looks for it.

    Hash-based and unchecked: valid whatever the timestamps. Compiled by a fresh interpreter with
    a fixed hash seed, since byte code depends a little on what a process did before.
    """
    command = [sys.executable, "-S", "-m", "compileall", "-b", "-q", "-o", "0"]
    command += ["--invalidation-mode", "unchecked-hash"]
    command += ["-s", str(tree), "-p", "router.pyz", str(tree)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    environment["PYTHONHASHSEED"] = "0"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{done.stdout}{done.stderr}\nNot every module could be compiled.")


def archive(tree: Path) -> bytes:
    """The zip file of `tree` with its shebang: sorted names, fixed times and modes."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "0")
    if not epoch.isdecimal():
        raise BuildError(f"SOURCE_DATE_EPOCH is to be seconds since 1970, not {epoch!r}.")
    stamp = max(time.gmtime(int(epoch))[:6], (1980, 1, 1, 0, 0, 0))
    data = io.BytesIO()
    data.write(b"#!/usr/bin/env python3\n")
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archived:
        files = {path.relative_to(tree).as_posix(): path for path in tree.rglob("*")}
        for name, path in sorted(files.items()):
            # Folders have entries too: without them zipimport finds no package that lacks an
            # `__init__.py` (flask.sansio) before Python 3.13.
            entry = zipfile.ZipInfo(f"{name}/" if path.is_dir() else name, stamp)
            entry.create_system = 3  # Unix, wherever it is built
            if path.is_dir():
                entry.external_attr = (0o40755 << 16) | 0x10
                archived.writestr(entry, b"")
            else:
                entry.external_attr = 0o100644 << 16
                entry.compress_type = zipfile.ZIP_DEFLATED
                archived.writestr(entry, path.read_bytes())
    return data.getvalue()


def replace(output: Path, content: bytes, *, mode: int) -> None:
    """Write `output` so that nobody ever sees half of it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=output.parent, prefix=f".{output.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(name, mode)
        os.replace(name, output)
    except BaseException:
        os.unlink(name)
        raise


def progress(words: str) -> None:
    """A line that the next one replaces, where a person is watching."""
    if sys.stdout.isatty():
        print(f"\r\x1b[K{words}", end="", flush=True)


@contextlib.contextmanager
def step(words: str) -> Iterator[None]:
    print(f"{words} ...", flush=True)
    start = time.monotonic()
    yield
    print(f"  done in {time.monotonic() - start:.1f} s", flush=True)


def bill_of_materials(parts: Sequence[Part], version: str, digest: str) -> bytes:
    """What the file is made of, as CycloneDX 1.5 has it. The same for the same file."""
    name = "sglang-diffusion-router"
    made = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "name": name,
                "version": version,
                "hashes": [{"alg": "SHA-256", "content": digest}],
            }
        },
        "components": [
            {
                "type": "library",
                "name": part.name,
                "version": part.version,
                "purl": f"pkg:pypi/{part.name.lower().replace('_', '-')}@{part.version}",
                **({"licenses": [{"expression": part.licence}]} if part.licence else {}),
            }
            for part in parts
        ],
    }
    return (json.dumps(made, indent=2) + "\n").encode()


def build(output: Path, root: Path = ROOT, *, sbom: Path | None = None) -> None:
    """Build the file `output` from the checkout `root`, and its bill of materials `sbom`; raises
    `BuildError`."""
    with tempfile.TemporaryDirectory(prefix="router-pyz-") as name:
        scratch = Path(name).resolve()
        site, tree = scratch / "site", scratch / "tree"
        tree.mkdir()
        with step(f"Installing the packages of {LOCK}"):
            install(root / LOCK, site, scratch)
        parts = collect(site, tree)
        version = collect_own(root, tree)
        with step(f"Compiling for Python {sys.version_info[0]}.{sys.version_info[1]}"):
            compile_tree(tree)
        with step("Compressing"):
            content = archive(tree)
        (scratch / "router.pyz").write_bytes(content)
        stripped = ", ".join(part.name for part in parts if part.native_modules)
        with step(f"Importing {len(parts)} packages without native code (had some: {stripped})"):
            check_imports(scratch / "router.pyz", parts, own_modules(tree))
    digest = hashlib.sha256(content).hexdigest()
    replace(output, content, mode=0o755)
    if sbom is not None:
        replace(sbom, bill_of_materials(parts, version, digest), mode=0o644)
    print(f"{output}: router {version}, {len(content) / 1e6:.1f} MB, sha256 {digest}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Build the router and all its dependencies into one file that any "
        "Python 3.11 or later runs. Set SOURCE_DATE_EPOCH to stamp the files inside."
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=ROOT / "dist" / "router.pyz",
        metavar="FILE",
        help="where to write it (default: dist/router.pyz beside this script)",
    )
    parser.add_argument(
        "--sbom",
        type=Path,
        metavar="FILE",
        help="write here what it is made of, too (CycloneDX, JSON)",
    )
    given = parser.parse_args(argv)
    try:
        build(given.output, sbom=given.sbom)
    except BuildError as error:
        print(f"build_zipapp.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nbuild_zipapp.py: interrupted, nothing written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
