"""Whoever may dial in may do so thousands of times and say nothing; whoever may not is refused."""

from __future__ import annotations

import errno
import os
import resource
import socket
import stat
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from panicd.fleet.unidentified import (
    TELL_EVERY,
    UNIDENTIFIED_AT_MOST,
    UnidentifiedConnections,
)
from tests.fleet.test_connector import NOT_CONNECTED
from tests.parts.background import background
from tests.parts.daemon import RunningDaemon
from tests.parts.fake import FakeQemu
from tests.parts.vitals import open_files, resident_bytes, wait_files_closed

MANY = UNIDENTIFIED_AT_MOST + 300
NOBODY = 65534
REFUSED = "connection refused"


@asynccontextmanager
async def listening(directory: Path) -> AsyncIterator[tuple[RunningDaemon, Path]]:
    path = directory / "dial-in.sock"
    async with RunningDaemon.start(
        directory, monitors=[{"listen": str(path)}], time_limit=40
    ) as daemon:
        yield daemon, path


@contextmanager
def silent(path: Path, count: int) -> Iterator[None]:
    """Connect so often, and say nothing."""
    with ExitStack() as stack:
        for _ in range(count):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            sock.connect(str(path))
        yield


async def test_strangers_are_bounded_and_keep_nobody_out(socket_dir: Path) -> None:
    vm = FakeQemu(socket_dir, name="vm", dial=socket_dir / "dial-in.sock", reconnect=0.0)
    async with listening(socket_dir) as (daemon, path), background() as nursery:
        files, memory = len(open_files(daemon.pid)), resident_bytes(daemon.pid)
        began = trio.current_time()
        with silent(path, MANY):
            nursery.start_soon(vm.run)
            await daemon.wait_armed("vm")
            assert len(open_files(daemon.pid)) <= files + 2 * (UNIDENTIFIED_AT_MOST + 1) + 8
            assert resident_bytes(daemon.pid) - memory < MANY * 100_000
            vm.panic()
            await daemon.wait_incident("vm", state="preserved")
            await daemon.wait_log(REFUSED, reason="too many connections say nothing")
        await daemon.wait_domain("vm", lambda domain: domain["connected"])
        told = [
            line
            for event in (NOT_CONNECTED, REFUSED)
            for line in daemon.logged(event)
            if "dial-in.sock#" in line["monitor"]
        ]
        assert len(told) <= 1 + (trio.current_time() - began) / TELL_EVERY


async def test_strangers_leave_nothing_behind(socket_dir: Path) -> None:
    async with listening(socket_dir) as (daemon, path):
        await daemon.call("incidents")  # SQLite keeps what its file was read with
        files = open_files(daemon.pid)
        for _ in range(2):
            with silent(path, 100):
                while not (await daemon.call("status"))["domains"]:
                    await trio.lowlevel.checkpoint()
            while (await daemon.call("status"))["domains"]:
                await trio.lowlevel.checkpoint()
        await wait_files_closed(files, daemon.pid)


async def test_when_files_run_out_connections_wait(socket_dir: Path) -> None:
    vm = FakeQemu(socket_dir, name="vm", dial=socket_dir / "dial-in.sock", reconnect=0.0)
    async with listening(socket_dir) as (daemon, path), background() as nursery:
        _, hard = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
        limit = len(open_files(daemon.pid)) + 40
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (limit, hard))
        with silent(path, 200):
            await daemon.wait_log("connections have to wait")
        nursery.start_soon(vm.run)
        await daemon.wait_armed("vm")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
async def test_who_may_not_is_refused(socket_dir: Path) -> None:
    os.chmod(socket_dir, 0o701)  # noqa: PTH101 - one call that waits for nothing
    async with listening(socket_dir) as (daemon, path):
        for refused in (path, daemon.control_socket):
            assert stat.S_IMODE(refused.stat().st_mode) == 0o660
            code = (
                f"import os, socket; os.setgid({NOBODY}); os.setuid({NOBODY}); "
                f"exit(socket.socket(socket.AF_UNIX).connect_ex({str(refused)!r}))"
            )
            done = await trio.run_process([sys.executable, "-c", code], check=False)
            assert done.returncode == errno.EACCES
        assert (await daemon.call("status"))["domains"] == []


async def test_the_one_who_has_most_makes_room() -> None:
    strangers = UnidentifiedConnections()
    ended: list[str] = []

    async def stay(address: str, uid: int) -> None:
        with strangers.admitted(address, uid):
            await trio.Event().wait()
        ended.append(address)

    async with background() as nursery:
        nursery.start_soon(stay, "other", 7)
        await trio.testing.wait_all_tasks_blocked()
        for number in range(UNIDENTIFIED_AT_MOST + 1):
            nursery.start_soon(stay, str(number), 8)
            await trio.testing.wait_all_tasks_blocked()
        assert ended == ["0", "1"]
        assert "other" in strangers
        strangers.known("2")
        assert "2" not in strangers
