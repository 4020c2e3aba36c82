"""Looking up names, and telling sockets of this machine apart."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest
import trio

from router.net.listeners import is_local, read_listening, shared
from router.net.lookup import Lookups, Resolver, Silent, Unresolved


async def looking(resolver: Resolver, nursery: trio.Nursery) -> Lookups:
    lookups = Lookups(resolver)
    await nursery.start(lookups.run)
    return lookups


def test_one_look_up_for_all_who_want_the_name() -> None:
    asked: list[str] = []
    gate = threading.Event()

    def resolver(host: str) -> list[str]:
        asked.append(host)
        gate.wait(5)
        return ["10.0.0.1"]

    async def main() -> None:
        found: list[list[str]] = []
        async with trio.open_nursery() as nursery:
            lookups = await looking(resolver, nursery)

            async def find() -> None:
                found.append(await lookups.find("a", within=5))

            with pytest.raises(Silent):
                await lookups.find("a", within=0.01)
            async with trio.open_nursery() as finding:
                for _ in range(3):
                    finding.start_soon(find)
                await trio.testing.wait_all_tasks_blocked()
                gate.set()
            nursery.cancel_scope.cancel()
        assert found == [["10.0.0.1"]] * 3
        assert asked == ["a"]

    trio.run(main)


def test_names_that_hang_leave_room_for_others() -> None:
    gate = threading.Event()
    hanging = 0

    def resolver(host: str) -> list[str]:
        nonlocal hanging
        if host.startswith("hangs"):
            hanging += 1
            gate.wait(5)
        return ["10.0.0.1"]

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            lookups = await looking(resolver, nursery)
            lookups._slow_names |= {f"hangs{number}" for number in range(50)}
            for number in range(50):
                with pytest.raises(Silent):
                    await lookups.find(f"hangs{number}", within=0.001)
            assert await lookups.find("sound", within=5) == ["10.0.0.1"]
            assert hanging <= 4
            nursery.cancel_scope.cancel()
        gate.set()

    trio.run(main)


@pytest.mark.parametrize(
    ("error", "silent"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), False),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), True),
        (socket.gaierror(socket.EAI_FAIL, "Non-recoverable failure"), True),
        (OSError(24, "Too many open files"), True),
        (UnicodeError("label too long"), False),
    ],
)
def test_failures(error: Exception, silent: bool) -> None:
    def resolver(host: str) -> list[str]:
        raise error

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            lookups = await looking(resolver, nursery)
            for _ in range(2):
                with pytest.raises(Unresolved) as caught:
                    await lookups.find("name", within=5)
                assert isinstance(caught.value, Silent) is silent
                assert "name" in str(caught.value)
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_no_look_up_without_a_router() -> None:
    async def main() -> None:
        with pytest.raises(Silent, match="is not running"):
            await Lookups().find("name", within=1)

    trio.run(main)


@pytest.mark.parametrize(("address", "local"), [("127.0.0.9", True), ("192.0.2.1", False)])
def test_addresses_of_this_machine(address: str, local: bool) -> None:
    assert is_local(address) is local


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="the kernel does not tell")
def test_listening_sockets() -> None:
    with socket.create_server(("0.0.0.0", 0)) as every:
        port = every.getsockname()[1]
        found = shared("127.0.0.1", port, read_listening())
        assert len(found) == 1
        assert shared("127.0.0.2", port, read_listening()) == found
        assert shared("::1", port, read_listening()) == set()
    assert shared("127.0.0.1", port, read_listening()) == set()
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.2", one.getsockname()[1])),
    ):
        port = one.getsockname()[1]
        for last in (1, 2, 3):  # two have a socket of their own, the third has none
            assert shared(f"127.0.0.{last}", port, read_listening()) == set()


TABLE = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when ... inode
   0: 0100007F:7530 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 11 1
   1: 00000000:7530 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12 1
   2: 0100007F:7531 0100007F:C000 01 00000000:00000000 00:00000000 00000000     0        0 13 1
"""
TABLE_6 = """  sl  local_address                         remote_address                        st
   0: 00000000000000000000000000000000:7532 00000000000000000000000000000000:0000 0A 0 0 0 0 0 21
"""


def test_the_kernel_prefers_the_socket_of_the_address_which_is_not_shared(tmp_path: Path) -> None:
    (tmp_path / "4").write_text(TABLE)
    (tmp_path / "6").write_text(TABLE_6)
    listening = read_listening((tmp_path / "4", tmp_path / "6", tmp_path / "missing"))
    assert shared("127.0.0.1", 30000, listening) == set()
    assert shared("10.0.0.1", 30000, listening) == {"12"}
    assert shared("127.0.0.1", 30001, listening) == set()
    assert shared("10.0.0.1", 30002, listening) == {"21"}
    assert shared("::1", 30002, listening) == {"21"}
