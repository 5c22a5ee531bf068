"""The log of commands and the faults: of the fake, and of the proxy before a real QEMU."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.parts.fake import FakeQemu
from tests.parts.patience import fail_after
from tests.parts.proxy import listen
from tests.parts.qemu import RealQemu
from tests.parts.qmp import QmpCommandError, connect_qmp, qmp_over
from tests.parts.recorded import RecordedMonitor

TIME_LIMIT = 20.0

StartRecorded = Callable[[], AbstractAsyncContextManager[tuple[RecordedMonitor, Path]]]


@asynccontextmanager
async def start_fake(directory: Path) -> AsyncIterator[tuple[RecordedMonitor, Path]]:
    with fail_after(TIME_LIMIT):
        async with FakeQemu(directory / "vm.qmp").running() as fake:
            yield fake, fake.socket


@asynccontextmanager
async def start_proxied(directory: Path) -> AsyncIterator[tuple[RecordedMonitor, Path]]:
    with fail_after(TIME_LIMIT):
        async with RealQemu.start(directory, proxied=True) as vm:
            yield vm.proxy, vm.socket


@pytest.fixture(
    params=[
        pytest.param(start_fake, id="fake"),
        pytest.param(start_proxied, id="proxy", marks=pytest.mark.real),
    ]
)
def start(request: pytest.FixtureRequest, socket_dir: Path) -> StartRecorded:
    return partial(request.param, socket_dir)


async def status(path: Path) -> str:
    async with connect_qmp(path) as qmp:
        return str((await qmp.execute("query-status"))["status"])


async def test_records_commands_whole_and_in_order(start: StartRecorded) -> None:
    async with start() as (monitor, path):
        async with connect_qmp(path) as qmp:
            await qmp.execute("set-action", {"panic": "pause"})
            await qmp.execute("query-status")
            await qmp.execute("stop")
        assert monitor.commands == ["qmp_capabilities", "set-action", "query-status", "stop"]
        assert monitor.changing_commands == ["set-action", "stop"]
        assert (await monitor.wait_command("set-action"))["arguments"] == {"panic": "pause"}


async def test_cut_before(start: StartRecorded) -> None:
    async with start() as (monitor, path):
        fault = monitor.cut_before("stop")
        async with connect_qmp(path) as qmp:
            await qmp.send("stop")
            await qmp.wait_closed()
            assert qmp.sequence() == ["return qmp_capabilities"]
        assert fault.reached.is_set()
        assert await status(path) == "running"


async def test_cut_after(start: StartRecorded) -> None:
    async with start() as (monitor, path):
        fault = monitor.cut_after("stop")
        async with connect_qmp(path) as qmp:
            await qmp.send("stop")
            await qmp.wait_closed()
            assert qmp.sequence() == ["return qmp_capabilities", "STOP"]
        assert fault.reached.is_set()
        assert await status(path) == "paused"


async def test_swallow(start: StartRecorded) -> None:
    async with start() as (monitor, path):
        fault = monitor.swallow("stop")
        async with connect_qmp(path) as qmp:
            await qmp.send("stop")
            assert (await qmp.execute("query-status"))["status"] == "paused"
            assert qmp.sequence() == ["return qmp_capabilities", "STOP", "return query-status"]
        assert fault.reached.is_set()


async def test_hold_then_release(start: StartRecorded) -> None:
    async with start() as (monitor, path):
        fault = monitor.hold("stop")
        async with connect_qmp(path) as qmp:
            stop = await qmp.send("stop")
            await fault.reached.wait()
            assert qmp.sequence() == ["return qmp_capabilities"]
            fault.release()
            await qmp.reply(stop)
            assert qmp.sequence() == ["return qmp_capabilities", "STOP", "return stop"]


async def test_hold_then_cut(start: StartRecorded) -> None:
    async with start() as (monitor, path):
        fault = monitor.hold("stop")
        async with connect_qmp(path) as qmp:
            await qmp.send("stop")
            await fault.reached.wait()
            fault.cut()
            await qmp.wait_closed()
        assert await status(path) == "running"


async def test_hold_reply(start: StartRecorded) -> None:
    async with start() as (monitor, path):
        fault = monitor.hold_reply("stop")
        async with connect_qmp(path) as qmp:
            stop = await qmp.send("stop")
            await qmp.wait_event("STOP")
            await fault.reached.wait()
            assert qmp.sequence() == ["return qmp_capabilities", "STOP"]
            fault.release()
            await qmp.reply(stop)


async def test_refuse(start: StartRecorded) -> None:
    async with start() as (monitor, path):
        monitor.refuse("stop", "no", error_class="DeviceNotActive")
        async with connect_qmp(path) as qmp:
            with pytest.raises(QmpCommandError, match=r"DeviceNotActive: no") as caught:
                await qmp.execute("stop")
            assert caught.value.error_class == "DeviceNotActive"
            assert (await qmp.execute("query-status"))["status"] == "running"


async def test_garble(start: StartRecorded) -> None:
    async with start() as (monitor, path):
        monitor.garble("stop", b'{"return": "odd"}\r\n')
        async with connect_qmp(path) as qmp:
            await qmp.send("stop")
            assert (await qmp.execute("query-status"))["status"] == "paused"
            assert {"return": "odd"} in qmp.messages


async def test_faults_happen_as_often_as_asked_in_the_order_made(start: StartRecorded) -> None:
    async with start() as (monitor, path), connect_qmp(path) as qmp:
        monitor.refuse("stop", "first", times=2)
        monitor.refuse("stop", "second", times=None)
        descs = []
        for _ in range(4):
            with pytest.raises(QmpCommandError) as caught:
                await qmp.execute("stop")
            descs.append(caught.value.desc)
        assert descs == ["first", "first", "second", "second"]


async def test_passes_file_descriptors_on(start: StartRecorded) -> None:
    async with start() as (_monitor, path), connect_qmp(path) as qmp:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            await qmp.execute("stop")
            await qmp.execute("getfd", {"fdname": "core"}, fds=[theirs.fileno()])
            theirs.close()
            await qmp.execute(
                "dump-guest-memory", {"paging": False, "protocol": "fd:core", "detach": True}
            )
            assert await trio.socket.from_stdlib_socket(ours).recv(4) == b"\x7fELF"


@pytest.mark.real
async def test_a_proxied_qemu_that_ends_refuses_connections(socket_dir: Path) -> None:
    with fail_after(TIME_LIMIT):
        async with RealQemu.start(socket_dir, proxied=True) as vm:
            async with connect_qmp(vm.socket) as qmp:
                await qmp.send("quit")
                await qmp.wait_closed()
            await vm.wait_exit()
            while True:
                try:
                    async with connect_qmp(vm.socket, negotiate=False) as qmp:
                        await qmp.wait_closed()
                except ConnectionRefusedError:
                    break


@pytest.mark.real
async def test_a_proxied_qemu_dials_in(socket_dir: Path) -> None:
    path = socket_dir / "dial"
    with fail_after(TIME_LIMIT), listen(path) as listener:
        async with RealQemu.start(socket_dir, dial=path, proxied=True) as vm:
            sock, _address = await listener.accept()
            async with qmp_over(sock) as qmp:
                await qmp.execute("stop")
                await vm.wait_status("paused")
            assert vm.proxy.changing_commands == ["stop"]


async def test_the_fake_closes_in_the_end_what_it_received(socket_dir: Path) -> None:
    reading, writing = os.pipe()
    with fail_after(TIME_LIMIT):
        async with FakeQemu(socket_dir / "vm.qmp").running() as fake:
            async with connect_qmp(fake.socket) as qmp:
                await qmp.execute("getfd", {"fdname": "core"}, fds=[writing])
            os.close(writing)
        async with trio.lowlevel.FdStream(reading) as pipe:
            assert await pipe.receive_some() == b""
