"""The state directory, from outside: who may use it, what is refused, and looking at it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.processes import WITHIN, ask, process, wait_until_ready, worker

posix = pytest.mark.skipif(sys.platform == "win32", reason="locks and limits of POSIX")
VIDEO = {"prompt": "a kite", "size": "64x64", "num_frames": 2, "num_inference_steps": 1}


def router(pyz: Path, log: Path, folder: Path, *flags: str) -> Any:
    command = [pyz, "--host", "127.0.0.1", "--port", "0", "--state-dir", folder, *flags]
    return process(log, r"listening on (http://\S+)", *command)


def run(pyz: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, pyz, *arguments], capture_output=True, text=True, timeout=WITHIN
    )


def fails(pyz: Path, folder: Path, *flags: str) -> str:
    """Start a router that cannot use its directory; the sentence that it ends with."""
    command = ["--host", "127.0.0.1", "--port", "0", "--state-dir", folder, *flags]
    done = run(pyz, *command)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def post(url: str, body: Any) -> tuple[int, Any]:
    data = json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(request, timeout=WITHIN) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


@posix
def test_one_router_per_directory(router_pyz: Path, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    with router(router_pyz, tmp_path / "a.log", folder) as at:
        assert "uses the state directory" in fails(router_pyz, folder)
        assert ask("GET", f"{at}/live") == {"status": "ok"}
        shown = run(router_pyz, "state", "show", folder)
        assert "is using this directory and may change it" in shown.stdout
        assert run(router_pyz, "state", "check", folder).returncode == 0
    with router(router_pyz, tmp_path / "b.log", folder):
        pass


def test_what_was_resumed_is_told(router_pyz: Path, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    with worker(router_pyz, tmp_path / "worker.log") as url:
        with router(router_pyz, tmp_path / "a.log", folder) as at:
            post(f"{at}/workers", {"url": url})
            wait_until_ready(at)
            status, job = post(f"{at}/v1/videos", VIDEO)
            assert status == 200
        assert "resumed" not in (tmp_path / "a.log").read_text(encoding="utf-8")
        with router(router_pyz, tmp_path / "b.log", folder) as at:
            wait_until_ready(at)
            assert ask("GET", f"{at}/v1/videos/{job['id']}")["id"] == job["id"]
            assert ask("GET", f"{at}/health")["state"] == "ok"
        told = (tmp_path / "b.log").read_text(encoding="utf-8")
        assert f"resumed from {folder}: 1 worker, " in told
        assert "--fresh starts without this state" in told
        shown = run(router_pyz, "state", "show", folder).stdout
        assert "No router is using this directory." in shown
        assert "workers: 1 row\n" in shown
        assert url in shown
        assert f"videos of {url}" in shown
        rows = run(router_pyz, "state", "show", folder, "assets/1").stdout
        assert job["id"] in rows
        with router(router_pyz, tmp_path / "c.log", folder, "--fresh") as at:
            assert ask("GET", f"{at}/workers")["total"] == 0
        assert "resumed" not in (tmp_path / "c.log").read_text(encoding="utf-8")


def test_state_that_cannot_be_used_is_one_clear_sentence(router_pyz: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    told = fails(router_pyz, tmp_path / "file")
    assert f"The state directory {tmp_path / 'file'} cannot be used: not a directory" in told
    folder = tmp_path / "state"
    with router(router_pyz, tmp_path / "a.log", folder) as at:
        post(f"{at}/workers", {"url": "http://127.0.0.1:1"})
    newest = max(folder.glob("snapshot-*.jsonl"))
    good = newest.read_bytes()
    newest.write_bytes(b'{"format": 99}\n')
    assert "format 99 is newer than 2, the newest format that this version reads" in fails(
        router_pyz, folder
    )
    checked = run(router_pyz, "state", "check", folder)
    assert checked.returncode == 1
    assert f"{newest.name}: BAD: format 99" in checked.stdout
    newest.write_bytes(good[:-1])
    assert run(router_pyz, "state", "check", folder).returncode == 1
    with router(router_pyz, tmp_path / "b.log", folder) as at:
        assert ask("GET", f"{at}/workers")["total"] == 1
    told = (tmp_path / "b.log").read_text(encoding="utf-8")
    assert f"renamed to {newest.name}.corrupt" in told


def test_a_damaged_journal_is_refused_and_repaired(router_pyz: Path, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    with router(router_pyz, tmp_path / "a.log", folder) as at:
        for number in range(1, 5):
            assert post(f"{at}/workers", {"url": f"http://127.0.0.1:{number}"})[0] == 200
        assert run(router_pyz, "state", "repair", folder).returncode == 2  # a router has it
        journal = max(folder.glob("journal-*.jsonl"))
        before = journal.read_bytes()
    for path in folder.glob("*-2.jsonl"):  # the end of a router that was killed
        path.unlink()
    lines = before.splitlines(keepends=True)
    [index] = [n for n, line in enumerate(lines) if b'"http://127.0.0.1:2"' in line]
    lines[index] = lines[index].replace(b"127.0.0.1:2", b"127.0.0.1:7")
    journal.write_bytes(b"".join(lines))
    place = f"{journal.name}, line {index + 1}: wrong checksum"
    told = fails(router_pyz, folder)
    assert place in told
    assert f"'state repair {folder}'" in told
    checked = run(router_pyz, "state", "check", folder)
    assert checked.returncode == 1
    assert place in checked.stdout
    said = run(router_pyz, "state", "repair", folder, "--dry-run")
    assert said.returncode == 0
    assert f"{place}; the line may have contained: put workers" in said.stdout
    assert fails(router_pyz, folder) == told
    done = run(router_pyz, "state", "repair", folder)
    assert done.returncode == 0
    assert done.stdout.startswith(said.stdout)
    assert (folder / "before-repair-1" / journal.name).read_bytes() == b"".join(lines)
    assert run(router_pyz, "state", "check", folder).returncode == 0
    assert run(router_pyz, "state", "repair", folder).stdout == "nothing is damaged\n"
    with router(router_pyz, tmp_path / "b.log", folder) as at:
        kept = {worker["url"] for worker in ask("GET", f"{at}/workers")["workers"]}
    assert kept == {f"http://127.0.0.1:{number}" for number in (1, 3, 4)}


def test_a_directory_that_others_may_write_to(router_pyz: Path, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    folder.chmod(0o777)
    assert "Other users can write to the state directory" in fails(router_pyz, folder)
    assert not list(folder.iterdir())


def test_state_none_writes_nothing(router_pyz: Path, tmp_path: Path) -> None:
    with router(router_pyz, tmp_path / "a.log", Path("none")) as at:
        status, _ = post(f"{at}/workers", {"url": "http://127.0.0.1:1"})
        assert status == 200
    assert not Path("none").exists()


def test_usage_of_the_state_command(router_pyz: Path, tmp_path: Path) -> None:
    for arguments in ((), ("show",), ("mend", "x"), ("check", "a", "b")):
        done = run(router_pyz, "state", *arguments)
        assert done.returncode == 2
        assert "expected 'show DIR [TABLE]', 'check DIR' or 'repair DIR [--dry-run]'" in done.stderr
    helped = run(router_pyz, "state", "--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "state check DIR" in helped.stdout
    for command in ("show", "check", "repair"):
        done = run(router_pyz, "state", command, tmp_path / "missing")
        assert done.returncode == 1
        assert "is not a directory" in done.stderr
    (tmp_path / "empty").mkdir()
    for command in ("show", "check", "repair"):  # a mistyped name must not look sound
        done = run(router_pyz, "state", command, tmp_path / "empty")
        assert (done.returncode, done.stdout) == (1, "")
        assert "There is no state in" in done.stderr
    assert list((tmp_path / "empty").iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="prlimit")
def test_a_full_disk_and_its_healing(router_pyz: Path, tmp_path: Path) -> None:
    import resource

    folder = tmp_path / "state"
    with (
        worker(router_pyz, tmp_path / "worker.log") as url,
        router(router_pyz, tmp_path / "a.log", folder, "--worker-urls", url) as at,
    ):
        wait_until_ready(at)
        assert post(f"{at}/v1/videos", VIDEO)[0] == 200
        pid = int((folder / "lock").read_text())
        # No file of the process may grow any more.
        size = max(path.stat().st_size for path in folder.glob("journal-*"))
        unlimited = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, unlimited[1]))
        status, refused = post(f"{at}/v1/videos", VIDEO)
        assert (status, refused["code"]) == (503, "state_unavailable")
        assert refused["retry_safe"] is False
        health = ask("GET", f"{at}/health")
        assert (health["state"], health["state_reason"]) == ("failing", "file too large")
        assert health["status"] == "healthy"
        image = {"prompt": "x", "size": "64x64", "num_inference_steps": 1}
        assert post(f"{at}/v1/images/generations", image)[0] == 200
        resource.prlimit(pid, resource.RLIMIT_FSIZE, unlimited)
        end = time.monotonic() + WITHIN
        while ask("GET", f"{at}/health")["state"] != "ok":
            assert time.monotonic() < end
            time.sleep(0.05)
        assert post(f"{at}/v1/videos", VIDEO)[0] == 200
    assert run(router_pyz, "state", "check", folder).returncode == 0
    assert refused["id"] in run(router_pyz, "state", "show", folder, "assets/1").stdout
