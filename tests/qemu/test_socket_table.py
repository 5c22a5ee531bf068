"""The kernel's table of unix sockets: who is taken, and who takes nobody."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from panicd.qemu.socket_table import DOES_NOT_ANSWER, TAKEN, Service, SocketTable, services


@pytest.fixture
def listener(socket_dir: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(socket_dir / "vm.qmp"))
        sock.listen(1)
        yield sock


def client(listener: socket.socket) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(listener.getsockname())
    return sock


async def service(listener: socket.socket) -> Service:
    return await SocketTable().service(listener.getsockname())


async def test_a_client_that_is_there_takes_a_monitor_and_one_that_waits_does_not(
    listener: socket.socket,
) -> None:
    assert await service(listener) is Service.FREE
    with client(listener):
        assert await service(listener) is Service.FREE, "it waits"
        accepted, _ = listener.accept()
        with accepted:
            assert await service(listener) is Service.TAKEN
    assert await service(listener) is Service.FREE


async def test_a_client_that_has_left_takes_nothing_though_nobody_noticed(
    listener: socket.socket,
) -> None:
    with client(listener) as gone:
        accepted, _ = listener.accept()
        gone.close()
        with accepted:
            assert await service(listener) is Service.FREE


@pytest.mark.parametrize("name", ["x\na b c zz e f g h", "x\r\x1c0: 1 2 3 4 5 6 7", "\n", "\xff"])
async def test_whatever_name_somebody_gives_a_socket_is_survived(
    listener: socket.socket, name: str
) -> None:
    """Any local user can, and panicd reads the table as root."""
    with socket.socket(socket.AF_UNIX) as odd:
        odd.bind(f"\0{name}")
        assert await service(listener) is Service.FREE


async def test_what_is_not_in_the_table_is_not_known(socket_dir: Path) -> None:
    table = SocketTable()
    assert await table.service(str(socket_dir / "none.qmp")) is Service.UNKNOWN
    why, silent = await table.why_silent(str(socket_dir / "none.qmp"), "no greeting within 5 s")
    assert (why.split(":")[0], silent) == ("no greeting within 5 s", False)


async def test_why_a_monitor_says_nothing(listener: socket.socket) -> None:
    path = listener.getsockname()
    assert await SocketTable().why_silent(path, "no greeting") == (DOES_NOT_ANSWER, True)
    with client(listener):
        accepted, _ = listener.accept()
        with accepted:
            assert await SocketTable().why_silent(path, "no greeting") == (TAKEN, False)
            why = "QEMU does not answer: no answer to it"
            greeted = await SocketTable().why_silent(path, "no answer to it", greeted=True)
            assert greeted == (why, True)


async def test_without_a_thread_to_read_it_nothing_is_known(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_arguments: Any, **_keywords: Any) -> None:
        await trio.lowlevel.checkpoint()
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(trio.to_thread, "run_sync", refuse)
    assert await SocketTable().service(listener.getsockname()) is Service.UNKNOWN


def test_a_path_with_spaces_and_lines_that_make_no_sense() -> None:
    table = (
        "Num       RefCount Protocol Flags    Type St Inode Path\n"
        "00000000: 00000002 00000000 00010000 0001 01 11 /run/a b.qmp\n"
        "00000000: 00000003 00000000 00000000 0001 03 12 /run/a b.qmp\n"
        "00000000: 00000003 00000000 00000000 0001 03 13\n"
        "\n"
    )
    assert services(table) == {"/run/a b.qmp": Service.TAKEN}
