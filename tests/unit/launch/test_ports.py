"""Ports: free, ours until the spawn, and no worker's twice. With real sockets."""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.errors import StartError
from router.launch import ports as ports_module
from router.launch.base import WorkerPorts
from router.launch.ports import (
    HeldPorts,
    PortBook,
    bind,
    first_choice,
    http_candidates,
    moved_to,
    ports_of,
    scheduler_candidates,
    taken_ports,
)
from router.settings import LauncherSettings
from tests.unit.launch.settings import launcher

ANY = {"worker_base_port": 0, "master_port_base": 0, "scheduler_port_base": 0}


@contextmanager
def listening(port: int = 0, host: str = "127.0.0.1") -> Iterator[int]:
    """Somebody else who listens, as servers do."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((host, port))
        server.listen()
        yield server.getsockname()[1]


def can_listen(port: int) -> bool:
    """Whether a worker could: on one address, and reusing addresses."""
    try:
        with listening(port):
            return True
    except OSError:
        return False


def free_port_pair(avoid: Collection[int] = ()) -> int:
    """A port P such that P and P+1 were both free."""
    while True:
        with listening() as port:
            pass
        if port not in avoid and can_listen(port) and can_listen(port + 1):
            return port


def near_free_ports(**values: object) -> LauncherSettings:
    """A launcher whose ports of first choice are free, at least now."""
    base = free_port_pair()
    master = free_port_pair(range(base, base + 40))
    scheduler = free_port_pair([*range(base, base + 40), *range(master, master + 40)])
    return launcher(
        **{
            "worker_base_port": base,
            "master_port_base": master,
            "scheduler_port_base": scheduler,
            "internal_port_stride": 10,
            **values,
        }
    )


def test_what_the_settings_give_a_worker() -> None:
    assert first_choice(launcher(), 0) == WorkerPorts(10090, 30005, 5555)
    assert first_choice(launcher(), 7) == WorkerPorts(10104, 37005, 12555)
    assert first_choice(launcher(**ANY), 3) == WorkerPorts(0, 0, 0)
    assert ports_of(WorkerPorts(10, 20, 30), replicas=2) == {10, 11, 20, 30, 31}


def test_the_ports_of_other_workers_are_not_tried_first() -> None:
    tried = http_candidates(launcher(num_workers=3, worker_base_port=100), 1)
    assert [next(tried) for _ in range(3)] == [102, 106, 108]


def test_internal_ports_stay_in_range() -> None:
    high = launcher(scheduler_port_base=64000, worker_extra_args="--dp-size 4")
    tried = list(scheduler_candidates(high, 5))
    assert tried[:3] == [64000, 65000, 64004]
    assert max(tried) + 3 <= 65535
    assert len(tried) == len(set(tried))


def test_ports_are_ours_until_the_spawn() -> None:
    settings = near_free_ports(worker_extra_args="--dp-size 2")
    held = PortBook().reserve(settings, 0)
    assert len(ports_of(held.ports, 2)) == 5
    assert not any(can_listen(port) for port in ports_of(held.ports, 2))
    held.unbind()
    assert all(can_listen(port) for port in ports_of(held.ports, 2))
    held.give_back()


def test_nobody_can_connect_meanwhile() -> None:
    with closing(bind(0)) as held:
        port = held.getsockname()[1]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5).close()


def test_a_taken_port_is_passed_over() -> None:
    settings = near_free_ports()
    first = first_choice(settings, 0)
    # The neighbour too: a worker takes both.
    with (
        listening(first.http + 1),
        listening(first.master, "127.0.0.1"),
        listening(first.scheduler, "0.0.0.0"),
    ):
        held = PortBook().reserve(settings, 0)
        held.give_back()
    assert not ports_of(held.ports) & {first.http, first.http + 1, first.master, first.scheduler}
    assert held.ports.http > first.http


def test_no_port_is_given_twice() -> None:
    book, settings = PortBook(), near_free_ports()
    same = near_free_ports(
        name="other",
        **{
            name: getattr(settings, name)
            for name in ("worker_base_port", "master_port_base", "scheduler_port_base")
        },
    )
    held = [book.reserve(each, index) for index in range(3) for each in (settings, same)]
    for each in held:
        each.unbind()  # ours even when they are no longer bound
    held.append(book.reserve(settings, 0))
    found = [port for each in held for port in ports_of(each.ports)]
    assert len(found) == len(set(found)) == 7 * 4
    for each in held:
        each.give_back()
    again = book.reserve(settings, 0)
    assert again.ports.http in (each.ports.http for each in held)
    again.give_back()


def test_adopted_ports_are_not_given_away() -> None:
    book, settings = PortBook(), near_free_ports()
    adopted = book.adopt(first_choice(settings, 0), 1)
    with_others = book.reserve(settings, 0)
    assert not ports_of(adopted.ports) & ports_of(with_others.ports)
    with_others.give_back()
    adopted.give_back()


def test_the_last_ports_are_kept_where_they_are_free() -> None:
    book, settings = PortBook(), near_free_ports()
    last = book.reserve(launcher(**ANY), 0)
    last.give_back()
    again = book.reserve(settings, 0, keep=last.ports)
    again.give_back()
    assert again.ports == last.ports
    avoiding = book.reserve(settings, 0, keep=last.ports, avoid={last.ports.http + 1})
    avoiding.give_back()
    assert avoiding.ports.http not in (last.ports.http, last.ports.http + 1)
    assert avoiding.ports.master == last.ports.master


def test_a_port_whose_last_connections_fade_can_be_had_again() -> None:
    # The server closes first, as one that dies does: its side lingers for a minute.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        accepted, _ = server.accept()
        accepted.close()
    assert client.recv(1) == b""
    client.close()
    with closing(bind(port)):
        assert not can_listen(port)
    assert can_listen(port)


@pytest.mark.parametrize(
    ("told", "within"),
    [
        ("32768\t60999\n", range(20000, 30000)),
        ("25000\t60999\n", range(20000, 25000)),
        ("1024\t65535\n", [0]),
        ("", range(20000, 30000)),
    ],
)
def test_any_port_is_none_that_a_connection_may_get(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str, within: Collection[int]
) -> None:
    kernel = tmp_path / "ip_local_port_range"
    kernel.write_text(told)
    monkeypatch.setattr(ports_module, "_CONNECTIONS", kernel)
    assert all(ports_module.quiet_port() in within for _ in range(1000))
    held = PortBook().reserve(launcher(**ANY), 0)
    held.give_back()
    found = sorted({*ports_of(held.ports)} - {held.ports.http + 1})
    assert found[0] in within or within == [0]


def test_none_left() -> None:
    everything = range(1, 65536)
    for base, place in ((0, ""), (20000, " from 20000 on")):
        settings = launcher(**{**ANY, "worker_base_port": base})
        with pytest.raises(StartError) as caught:
            PortBook().reserve(settings, 0, avoid=everything)
        assert str(caught.value) == (
            f"Launcher Qwen-Image: found no free neighbouring ports for worker 0{place}"
        )


def test_an_address_of_another_machine() -> None:
    with pytest.raises(
        StartError, match=r"worker_host 192\.0\.2\.1 is not an address of this machine"
    ):
        PortBook().reserve(launcher(worker_host="192.0.2.1"), 0)


PORTS = WorkerPorts(10090, 30005, 5555)


@pytest.mark.parametrize(
    ("words", "ports"),
    [
        ("OSError: CUDA out of memory on port 10090", set()),
        ("", set()),
        (
            "RuntimeError: HTTP port 10090 is unavailable and --strict-ports is enabled. Either",
            {10090},
        ),
        ("RuntimeError: Scheduler[1] port 5556 is unavailable and --strict-ports is", {5556}),
        ("zmq.error.ZMQError: Address already in use (addr='tcp://127.0.0.1:10091')", {10091}),
        (
            "[Errno 98] error while attempting to bind on address ('127.0.0.1', 10090): address"
            " already in use",
            {10090},
        ),
        (
            "The server socket has failed to listen on any local network address. port: 30005,"
            " useIpv6: false, code: -98, name: EADDRINUSE",
            {30005},
        ),
        ("simulate-worker: cannot take port 10091 on 127.0.0.1: Address already in use", {10091}),
        ("OSError: [Errno 48] somewhere", {10090, 10091, 30005, 5555, 5556}),
        (
            "Address already in use (port 110090)\nport 10090 is fine",
            {10090, 10091, 30005, 5555, 5556},
        ),
    ],
)
def test_last_words_about_a_taken_port(words: str, ports: set[int]) -> None:
    assert taken_ports(f"loading\n{words}\n", PORTS, replicas=2) == ports


def test_words_about_a_move() -> None:
    assert moved_to("Port 10090 was unavailable, using port 10132 instead", 10090) == 10132
    assert moved_to("[m] port 10090 is taken, using 10132", 10090) == 10132
    assert moved_to("Port 5555 was unavailable, using port 5597 instead", 10090) is None


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 12),
            st.integers(1, 4),
            st.integers(1, 50),
            st.integers(20000, 20050),
            st.integers(20000, 20050),
            st.integers(20000, 20050),
            st.booleans(),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_whatever_is_asked_for_no_port_is_given_twice(
    asked: list[tuple[int, int, int, int, int, int, bool]],
) -> None:
    book = PortBook()
    held: list[tuple[HeldPorts, int]] = []
    with ExitStack() as stack:
        for index, replicas, stride, http, master, scheduler, give_back in asked:
            settings = launcher(
                worker_base_port=http,
                master_port_base=master,
                scheduler_port_base=scheduler,
                internal_port_stride=stride,
                worker_extra_args=f"--dp-size {replicas}",
            )
            each = book.reserve(settings, index)
            stack.callback(each.give_back)
            if give_back:
                each.give_back()
            else:
                held.append((each, replicas))
            found = [port for other, wide in held for port in ports_of(other.ports, wide)]
            assert len(found) == len(set(found)) == sum(3 + wide for _, wide in held)
            assert all(20000 <= port <= 65535 for port in found)
