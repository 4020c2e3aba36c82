"""build_zipapp.py and what it builds; the wheel."""

from __future__ import annotations

import importlib.util
import json
import marshal
import os
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import build_zipapp
from build_zipapp import BuildError, Part

ROOT = Path(build_zipapp.__file__).parent
MAGIC = importlib.util.MAGIC_NUMBER
PACKAGE = "sglang_diffusion_router"  # the name that pip installs


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run with nothing installed in reach: -S leaves out site-packages, -I everything else."""
    return subprocess.run(
        [str(word) for word in command],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def version(pyz: Path) -> str:
    done = run(sys.executable, "-I", "-S", pyz, "--version")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def files(router_pyz: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(router_pyz) as archived:
        return {name: archived.read(name) for name in archived.namelist()}


def test_two_builds_are_the_same_bytes(
    router_pyz: Path, files: dict[str, bytes], tmp_path: Path
) -> None:
    again = tmp_path / "elsewhere" / "again.pyz"
    bill = tmp_path / "elsewhere" / "bill.json"

    done = run(
        *(sys.executable, "-O", ROOT / "build_zipapp.py", "--output", again, "--sbom", bill),
        PYTHONHASHSEED="12345",
        TMPDIR=str(tmp_path),
        TZ="Asia/Tokyo",
    )

    assert done.returncode == 0, done.stderr
    assert again.read_bytes() == router_pyz.read_bytes(), (
        "not the same; was router.pyz built by this Python from these sources?"
    )
    digest = re.search(r"sha256 ([0-9a-f]{64})", done.stdout)
    assert digest is not None
    assert sorted(again.parent.iterdir()) == [again, bill]
    made = json.loads(bill.read_bytes())
    assert made["metadata"]["component"]["hashes"][0]["content"] == digest[1]
    listed = {f"{part['name']}-{part['version']}".lower() for part in made["components"]}
    inside = {name.split(".dist-info/")[0] for name in files if ".dist-info/" in name}
    inside = {name.replace("_", "-") for name in inside}
    assert {name.replace("_", "-") for name in listed} == {
        name for name in inside if not name.startswith("sglang-diffusion-router")
    }


def test_the_file_is_executable(router_pyz: Path) -> None:
    assert router_pyz.read_bytes().startswith(b"#!/usr/bin/env python3\n")
    assert stat.S_IMODE(router_pyz.stat().st_mode) == 0o755


def test_no_native_code_tests_or_caches_inside(files: dict[str, bytes]) -> None:
    unwanted = re.compile(r"\.(so|pyd|dylib|dll)$|/(tests|_tests|__pycache__)/|RECORD$|INSTALLER$")

    assert [name for name in files if unwanted.search(name)] == []
    assert "trio/_core/_run.py" in files


def test_every_distribution_has_its_metadata_and_licence(files: dict[str, bytes]) -> None:
    infos = {name.split("/")[0] for name in files if ".dist-info/" in name}

    assert len(infos) > 30
    for info in infos:
        inside = [name for name in files if name.startswith(f"{info}/")]
        assert f"{info}/METADATA" in inside
        assert any(build_zipapp.LICENCE.match(Path(name).name) for name in inside), info


def test_everything_that_the_router_has_is_inside(files: dict[str, bytes]) -> None:
    for package, place in build_zipapp.OWN_PACKAGES.items():
        for source in (ROOT / place).rglob("*"):
            if source.is_file() and "__pycache__" not in source.parts:
                name = f"{package}/{source.relative_to(ROOT / place).as_posix()}"
                assert files[name] == source.read_bytes()
    assert not [name for name in files if name.startswith("sglang/")]


def test_byte_code_is_for_this_python_and_needs_no_timestamps(files: dict[str, bytes]) -> None:
    for name in [name for name in files if name.endswith(".py")]:
        compiled = files[f"{name}c"]
        assert compiled[:4] == MAGIC
        assert int.from_bytes(compiled[4:8], "little") == 0b01  # by hash, unchecked
        assert compiled[8:16] == importlib.util.source_hash(files[name])
        assert marshal.loads(compiled[16:]).co_filename == f"router.pyz/{name}"


def test_version_names_the_bundled_packages(router_pyz: Path, files: dict[str, bytes]) -> None:
    said = version(router_pyz).lower()

    assert f"{sys.version_info[0]}.{sys.version_info[1]}" in said
    for info in {name.split("/")[0] for name in files if ".dist-info/" in name}:
        name, number = info.removesuffix(".dist-info").rsplit("-", 1)
        pattern = rf"\b{name.replace('_', '[-_.]')}\b.*{re.escape(number)}"
        assert re.search(pattern, said) or name == "sglang_diffusion_router", info


def test_it_runs_on_a_python_that_cannot_use_the_byte_code(
    router_pyz: Path, files: dict[str, bytes], tmp_path: Path
) -> None:
    other = tmp_path / "other.pyz"
    with zipfile.ZipFile(other, "w") as archived:
        for name, content in files.items():
            if name.endswith(".pyc"):
                content = b"\x00\x00\r\n" + content[4:]  # the magic number of no Python
            archived.writestr(name, content)

    assert version(other) == version(router_pyz)


def test_the_lock_is_for_every_machine() -> None:
    for name in (build_zipapp.LOCK, "requirements-dev.lock"):
        text = (ROOT / name).read_text(encoding="utf-8")
        pins = re.findall(r"^(\S+)==(\S+)(?: ; (.*?))? \\$", text, re.MULTILINE)
        assert len(pins) == len(re.findall("^[a-z]", text, re.MULTILINE))
        assert "nox -s lock" in text
        assert "://" not in text
        # One version of each for all Pythons: a pyz of one Python has to run on the others.
        if name == build_zipapp.LOCK:
            markers = [marker.replace("_python_", "") for _, _, marker in pins]
            assert not any("python_" in marker for marker in markers)


def part(site: Path, name: str, sources: dict[str, str]) -> None:
    """Put a distribution into `site`, as pip would."""
    info = f"{name}-1.0.dist-info"
    sources = {
        **sources,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
    }
    for path, text in sources.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(text, encoding="utf-8")
    record = "".join(f"{path},,\n" for path in sources)
    (site / info / "RECORD").write_text(record, encoding="utf-8")


def collected(tmp_path: Path) -> tuple[Path, list[Part]]:
    tree = tmp_path / "tree"
    return tree, build_zipapp.collect(tmp_path / "site", tree)


def test_a_package_that_needs_its_native_part_fails_the_build_by_name(tmp_path: Path) -> None:
    native = {"fastpack/__init__.py": "from ._speed import pack", "fastpack/_speed.abi3.so": ""}
    part(tmp_path / "site", "Fast-Pack", native)

    tree, parts = collected(tmp_path)

    with pytest.raises(BuildError, match=r"^Fast-Pack 1\.0 needs .* fastpack\._speed,"):
        build_zipapp.check_imports(tree, parts)


def test_the_owner_is_blamed_when_the_import_of_another_package_finds_out(tmp_path: Path) -> None:
    native = {"fastpack/__init__.py": "from ._speed import pack", "fastpack/_speed.abi3.so": ""}
    part(tmp_path / "site", "Fast-Pack", native)
    part(tmp_path / "site", "Aardvark", {"aardvark/__init__.py": "import fastpack", "a/x.so": ""})

    tree, parts = collected(tmp_path)

    with pytest.raises(BuildError, match=r"^Fast-Pack 1\.0 needs .* \(importing aardvark:"):
        build_zipapp.check_imports(tree, parts)


def test_a_package_with_a_fallback_passes(tmp_path: Path) -> None:
    part(
        tmp_path / "site",
        "Fallback",
        {
            "fallback/__init__.py": "try:\n    from . import _c\nexcept ImportError:\n    pass",
            "fallback/_c.cpython-311-x86_64-linux-gnu.so": "\x7fELF",
            "fallback/tests/test_all.py": "raise SystemExit(1)",
            "fallback/data.json": "{}",
            "_fallback_shim/__init__.py": "raise ImportError('for old callers')",
            "../../bin/fallback": "#!python",
        },
    )

    tree, parts = collected(tmp_path)

    build_zipapp.check_imports(tree, parts)
    copied = {path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()}
    assert copied == {
        "fallback/__init__.py",
        "fallback/data.json",
        "_fallback_shim/__init__.py",
        "Fallback-1.0.dist-info/METADATA",
    }
    assert parts[0].native_modules == {"fallback._c"}


def test_a_package_missing_from_the_lock_fails_the_build(tmp_path: Path) -> None:
    part(tmp_path / "site", "Needy", {"needy/__init__.py": "import quite_absent"})

    tree, parts = collected(tmp_path)

    with pytest.raises(BuildError, match=r"^Needy does not work .*'quite_absent'"):
        build_zipapp.check_imports(tree, parts)


def test_own_code_that_does_not_import_fails_the_build(tmp_path: Path) -> None:
    (tmp_path / "router").mkdir()
    (tmp_path / "router" / "__init__.py").touch()
    (tmp_path / "router" / "broken.py").write_text("import quite_absent")

    assert build_zipapp.own_modules(tmp_path) == ["router", "router.broken"]
    with pytest.raises(BuildError, match=r"importing router\.broken: .*'quite_absent'"):
        build_zipapp.check_imports(tmp_path, [], build_zipapp.own_modules(tmp_path))


def test_a_failed_install_says_so_and_leaves_the_old_file(tmp_path: Path) -> None:
    for name in ("build_zipapp.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    lock = "attrs==26.1.0 --hash=sha256:" + "0" * 64
    (tmp_path / "requirements.lock").write_text(lock)
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / "router.pyz").write_text("the old one")

    done = run(sys.executable, tmp_path / "build_zipapp.py")

    assert done.returncode == 1
    assert "pip could not install the packages of requirements.lock" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "dist" / "router.pyz").read_text() == "the old one"


def test_the_wheel_installs_the_same_program(router_pyz: Path, tmp_path: Path) -> None:
    # From a copy: setuptools leaves its working files beside the sources.
    checkout = tmp_path / "checkout"
    skip = shutil.ignore_patterns("__pycache__")
    for folder in ("router", "sglang"):
        shutil.copytree(ROOT / folder, checkout / folder, ignore=skip)
    for name in ("LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, checkout)
    home = tmp_path / "venv"
    venv.create(home, with_pip=False, symlinks=os.name != "nt")
    pip = [*build_zipapp.pip_command(tmp_path), "--python", str(home)]

    done = run(*pip, "install", "--quiet", "--no-deps", checkout)

    assert done.returncode == 0, done.stderr
    site = next(home.glob("lib/python*/site-packages"))
    assert {path.name for path in site.iterdir() if "dist-info" not in path.name} == {PACKAGE}
    installed = {p.relative_to(site).as_posix() for p in site.rglob("*") if p.is_file()}
    with zipfile.ZipFile(router_pyz) as archived:
        bundled = {n for n in archived.namelist() if n.startswith(tuple(build_zipapp.OWN_PACKAGES))}
    own = {name for name in bundled if not name.endswith(("/", ".pyc"))}
    places = {"router": PACKAGE, "simulated_worker": f"{PACKAGE}/simulated_worker"}
    assert {places[(parts := n.split("/", 1))[0]] + "/" + parts[1] for n in own} <= installed
    # The dependencies are those of the environment that runs this test.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    program = home / "bin" / "sglang-d-router"
    python = home / "bin" / "python"
    for command in ([program], [python, "-m", PACKAGE], [python, site / PACKAGE / "__main__.py"]):
        said = run(*command, "--version")
        assert said.returncode == 0, said.stderr
        assert said.stdout.splitlines()[0] == version(router_pyz).splitlines()[0]
    helped = run(program, "simulate-worker", "--help")
    assert helped.returncode == 0, helped.stderr
    assert "--time-scale" in helped.stdout
