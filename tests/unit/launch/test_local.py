"""Worker processes: recognised, logged, and ended whatever they do about it."""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from attrs import evolve

from router.errors import StartError
from router.launch import output, processes
from router.launch.base import TOKEN_VARIABLE, Handle, Order, Run, WorkerPlan, WorkerPorts
from router.launch.local import LocalBackend, how_it_ended

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX process groups")

STAYS = "import time; print('ready', flush=True); time.sleep(60)"


def order(folder: Path, code: str, **env: str) -> Order:
    return command(folder, sys.executable, "-I", "-S", "-c", code, **env)


def command(folder: Path, *words: str, **env: str) -> Order:
    ports = WorkerPorts(1, 3, 4)
    plan = WorkerPlan("worker", 1, "worker 1", words, env, "http://127.0.0.1:1", ports)
    return Order(plan, secrets.token_hex(16), folder / "logs" / "worker.log")


def with_backend(body: Callable[[LocalBackend], Awaitable[None]]) -> None:
    async def main() -> None:
        with trio.fail_after(20):
            await body(LocalBackend())

    trio.run(main, strict_exception_groups=True)


async def exit_of(backend: LocalBackend, handle: Handle) -> Run:
    run = await backend.watch(handle, None)
    return run if run.status is not None else await backend.watch(handle, run)


async def until_says(handle: Handle, words: str) -> str:
    while words not in (said := output.last_words(handle.log)):
        await trio.sleep(0.01)
    return said


def test_environment_and_output_of_a_worker(tmp_path: Path) -> None:
    code = f"import os; print(os.environ['A'], os.environ['{TOKEN_VARIABLE}'], os.getpgrp())"

    async def body(backend: LocalBackend) -> None:
        for number in (1, 2):
            ordered = order(tmp_path, code, A="hi")
            handle = await backend.launch(ordered)
            await exit_of(backend, handle)
            lines = await backend.tail(handle, 9)
            assert len(lines) == 2 * number  # the second is appended
            assert re.match(r"---- sglang-d-router starts worker 1 at \d{4}-", lines[-2])
            assert lines[-1] == f"hi {ordered.token} {handle.ident}"

    with_backend(body)


def test_how_it_ended() -> None:
    assert how_it_ended(0) == "exited with status 0"
    assert how_it_ended(-signal.SIGKILL) == "was ended by SIGKILL"
    assert how_it_ended(-63) == "was ended by signal 63"


def test_a_death_by_signal_is_named(tmp_path: Path) -> None:
    async def body(backend: LocalBackend) -> None:
        handle = await backend.launch(order(tmp_path, STAYS))
        await until_says(handle, "ready")
        os.kill(int(handle.ident), signal.SIGKILL)
        run = await exit_of(backend, handle)
        assert (run.status, run.reason) == (-signal.SIGKILL, "was ended by SIGKILL")
        await backend.end(handle, patience=())

    with_backend(body)


def test_the_rest_of_its_group_goes_with_one_that_dies_by_itself(tmp_path: Path) -> None:
    code = "import os, time\nif os.fork(): os._exit(1)\nprint('child', os.getpid(), flush=True)\n"

    async def body(backend: LocalBackend) -> None:
        handle = await backend.launch(order(tmp_path, code + "time.sleep(60)"))
        child = int((await until_says(handle, "child")).split()[1])
        assert processes.look_up(child)
        await exit_of(backend, handle)
        await backend.end(handle, patience=())
        assert processes.look_up(child) is None

    with_backend(body)


def test_one_that_left_its_group_is_found_by_token_or_by_log(tmp_path: Path) -> None:
    hides = (
        "import os, sys, time\n"
        "if os.fork(): time.sleep(60)\n"
        "os.setsid()\n"
        "if sys.argv[1:]: os.execve(sys.executable, [sys.executable, '-c', {code!r}], {env})\n"
        "print('child', os.getpid(), flush=True); time.sleep(60)"
    )
    again = "import os, time; print('child', os.getpid(), flush=True); time.sleep(60)"

    async def body(backend: LocalBackend) -> None:
        for words in ([], ["without its environment"]):
            code = hides.format(code=again, env={})
            ordered = order(tmp_path / str(len(words)), code)
            plan = evolve(ordered.plan, command=(*ordered.plan.command, *words))
            handle = await backend.launch(evolve(ordered, plan=plan))
            child = int((await until_says(handle, "child")).split()[1])
            found = processes.marked(TOKEN_VARIABLE, [handle.token])[handle.token]
            assert (child in [process.pid for process in found]) is not bool(words)
            await backend.end(handle, patience=())
            assert processes.look_up(child) is None

    with_backend(body)


CHILD = """
import os, sys, time
place, session, env = sys.argv[1:]
if os.fork():
    time.sleep(60)
if session == "another":
    os.setsid()
with open(place, "w") as told:
    told.write(str(os.getpid()))
code = f"import time; open({place!r}, 'a').write(' ready'); time.sleep(60)"
null = os.open(os.devnull, os.O_WRONLY)
os.dup2(null, 1)
os.execve(sys.executable, [sys.executable, "-I", "-S", "-c", code], dict(os.environ) if env else {})
"""


@pytest.mark.parametrize(("session", "env"), [("the same", ""), ("another", "its own")])
def test_group_and_token_are_each_enough_to_be_ended(
    tmp_path: Path, session: str, env: str
) -> None:
    place = tmp_path / "child"
    place.touch()

    async def body(backend: LocalBackend) -> None:
        words = (sys.executable, "-I", "-S", "-c", CHILD, str(place), session, env)
        handle = await backend.launch(command(tmp_path, *words))
        await until(lambda: "ready" in place.read_text())
        child = int(place.read_text().split()[0])
        assert processes.look_up(child)
        await backend.end(handle, patience=())
        assert processes.look_up(child) is None

    with_backend(body)


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_an_unnoted_launch_that_hides_its_environment_is_found_by_its_log(tmp_path: Path) -> None:
    async def body(backend: LocalBackend) -> None:
        handle = await backend.launch(command(tmp_path, "/usr/bin/env", "-i", "sleep", "60"))
        while processes.marked(TOKEN_VARIABLE, [handle.token])[handle.token]:
            await trio.sleep(0.01)
        unnoted = Handle(handle.token, log=handle.log)
        assert (await LocalBackend().find([unnoted]))[handle.token] == handle
        await backend.end(handle, patience=())

    with_backend(body)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody knows who writes to a file")
def test_another_launch_with_the_same_log_is_left_alone(tmp_path: Path) -> None:
    async def body(backend: LocalBackend) -> None:
        ordered, other = order(tmp_path, STAYS), order(tmp_path, STAYS)
        handle, stranger = await backend.launch(ordered), await backend.launch(other)
        assert ordered.log
        assert output.unshared(ordered.log) == tmp_path / "logs" / "worker.2.log"
        await backend.end(handle, patience=())
        assert processes.look_up(int(stranger.ident))
        unnoted = Handle(handle.token, log=handle.log)
        assert await backend.find([unnoted]) == {}
        await backend.end(stranger, patience=())
        assert output.unshared(ordered.log) == ordered.log

    with_backend(body)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("seconds", [0, 0.005])
def test_the_mark_of_a_process_that_was_just_spawned_is_seen(
    monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    def slowly(pid: int) -> bool:
        time.sleep(seconds)  # the program may be loaded before the answer or after it
        return is_being_loaded(pid)

    is_being_loaded = processes._is_being_loaded
    monkeypatch.setattr(processes, "_is_being_loaded", slowly)
    command, env = [sys.executable, "-I", "-S", "-c", STAYS], {**os.environ, "MARK": "x"}
    for _ in range(150):  # a few of a hundred have no environment yet when they are looked at
        with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL) as child:
            found = processes.look_up(child.pid)
            mark = processes.mark_of(found, "MARK") if found else None
            child.kill()
        assert mark == "x"


def test_another_process_with_its_pid_is_left_alone(tmp_path: Path) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", STAYS], start_new_session=True)
    try:
        handle = Handle(secrets.token_hex(16), str(stranger.pid), f"{stranger.pid}@earlier")

        async def body(backend: LocalBackend) -> None:
            assert await backend.find([handle]) == {}
            assert (await backend.watch(handle, None)).reason == "ended"
            await backend.end(handle, patience=(1, 1))
            assert stranger.poll() is None

        with_backend(body)
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("/no/such/program", "worker 1 could not be started: /no/such/program: No such file"),
        ("/", "worker 1 could not be started: /: Permission denied"),
    ],
)
def test_what_cannot_be_started_is_said(tmp_path: Path, program: str, says: str) -> None:
    async def body(backend: LocalBackend) -> None:
        with pytest.raises(StartError) as caught:
            await backend.launch(command(tmp_path, program))
        assert str(caught.value).startswith(says)

    with_backend(body)


def test_a_process_is_known_by_its_start_as_well() -> None:
    me = processes.look_up(os.getpid())
    assert me is not None
    assert processes.is_alive(os.getpid(), me.identity)
    assert not processes.is_alive(os.getpid(), f"{os.getpid()}@another")
    assert processes.look_up(2**22 + 1) is None
    assert me in list(processes.all_processes())


@pytest.mark.skipif(sys.platform != "linux", reason="compares the two ways to look")
def test_ps_says_the_same_as_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    mark = secrets.token_hex(8)
    child = subprocess.Popen(
        [sys.executable, "-c", STAYS], env={"MARK": mark}, stdout=subprocess.PIPE
    )
    try:
        assert child.stdout
        child.stdout.readline()
        by_proc = processes.look_up(child.pid)
        monkeypatch.setattr(processes, "_LINUX", False)
        by_ps = processes.look_up(child.pid)
        assert by_proc
        assert by_ps
        assert by_ps.group == by_proc.group
        assert processes.is_alive(child.pid, by_ps.identity)
        child.kill()
        while processes.look_up(child.pid):
            pass
        assert not processes.is_alive(child.pid, by_ps.identity)
    finally:
        child.kill()
        child.wait()
        if child.stdout:
            child.stdout.close()


def test_last_lines(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with pytest.raises(FileNotFoundError):
        output.last_lines(path, 3)
    assert output.last_words(path) == "(the log cannot be read: no such file or directory)"
    path.write_text("")
    assert output.last_lines(path, 3) == []
    assert output.last_words(path) == "(no output)"
    path.write_text("".join(f"{number}\n" for number in range(50_000)) + "end without a newline")
    assert output.last_lines(path, 3) == ["49998", "49999", "end without a newline"]
    assert len(output.last_lines(path, 60_000)) == 50_001


def test_last_words_are_those_since_the_last_start(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for number in range(3):
        with path.open("ab+", 0) as file:
            output.separate(file, "image-0")
            assert output.last_words(path) == "(no output)"
            file.write(b"port 1 is taken\n%d without an end" % number)
        assert output.last_words(path) == f"port 1 is taken\n{number} without an end"
        assert output.last_words(path, 1) == f"{number} without an end"
    lines = path.read_text().splitlines()
    assert [line.startswith("----") for line in lines] == [True, False, False] * 3


def test_the_end_of_a_file_of_one_long_line_is_there(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb") as file:
        file.truncate(68_000_000)
        file.seek(0, os.SEEK_END)
        file.write(b"the end")
    for count in (1, 100, 10_000):
        (line,) = output.last_lines(path, count)
        assert line.startswith("... ")
        assert line.endswith("\0the end")
        assert len(line) == 4100
    with path.open("ab") as file:
        file.write(b"\nlast\n")
    assert output.last_lines(path, 1) == ["last"]
    assert output.last_lines(path, 10_000) == ["last"]


def test_no_more_than_the_last_mebibyte_is_read(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("".join(f"{number:999}\n" for number in range(3_000)))
    lines = output.last_lines(path, 10_000)
    assert len(lines) == 1024 * 1024 // 1000
    assert lines[-1].strip() == "2999"


def test_rotation_keeps_what_was_and_the_writer_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "worker.log"
    with path.open("ab", buffering=0) as log:
        log.write(b"first\n")
        assert not output.rotate(path, most=6)
        log.write(b"second\n")
        assert output.rotate(path, most=6)
        log.write(b"third\n")
        assert path.read_text() == "third\n"
        assert (tmp_path / "worker.log.1").read_text() == "first\nsecond\n"
    assert not output.rotate(tmp_path / "none")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["worker.log", "worker.log.1"]


def test_following_goes_on_through_a_rotation(tmp_path: Path) -> None:
    path, told = tmp_path / "worker.log", list[str]()
    path.write_text("before\n")

    async def main() -> None:
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                await nursery.start(output.Follower(path, told.append).run)
                with path.open("a") as log:
                    log.write("one\ntw")
                    log.flush()
                    await until(lambda: told == ["one"])
                    log.write("o\n")
                    log.flush()
                    await until(lambda: told == ["one", "two"])
                    output.rotate(path, most=0)
                    log.write("three\n")
                    log.flush()
                    await until(lambda: told == ["one", "two", "three"])
                nursery.cancel_scope.cancel()

    trio.run(main)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await trio.sleep(0.01)
