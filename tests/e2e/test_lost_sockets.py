"""Who cleans up in /run takes panicd's sockets away: it notices, says so, and binds them anew."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import trio

from panicd.demo.guests import Guest
from panicd.fleet import connector
from panicd.host import listening
from panicd.service.control_client import DaemonUnreachableError
from panicd.web.http import HttpServer
from tests.parts.daemon import DaemonInside, ObservedDaemon
from tests.parts.fake import FakeQemu
from tests.parts.http import get
from tests.parts.qemu import RealQemu
from tests.parts.small_disk import small_disk


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "LOOK_EVERY", 0.05)
    monkeypatch.setattr(connector, "LOOK_EVERY", 0.05)


async def readyz(daemon: ObservedDaemon) -> tuple[int, str]:
    served = await daemon.wait_log("metrics are served", since=daemon.began)
    server = cast("HttpServer", SimpleNamespace(host=served["host"], port=served["port"]))
    answer = await get(server, "/readyz")
    return answer.status, answer.body.decode()


@pytest.mark.real
async def test_a_listening_socket_whose_file_is_removed_is_bound_anew(socket_dir: Path) -> None:
    path = socket_dir / "run" / "dial-in.sock"
    path.parent.mkdir()
    async with DaemonInside.start(
        socket_dir, {"on_crash": "restart"}, monitors=[{"listen": str(path)}]
    ) as daemon:
        path.unlink()
        await daemon.wait_log("there is a problem", where=f"listening socket {path}")
        await daemon.wait_log("the problem is over", where=f"listening socket {path}")
        assert path.is_socket()
        async with RealQemu.start(socket_dir, guest=Guest.COUNT, dial=path) as vm:
            await daemon.wait_armed("vm")
            await vm.panic()
            await daemon.wait_incident("vm", ending="restarted")


async def test_what_is_connected_stays_so(socket_dir: Path) -> None:
    path = socket_dir / "dial-in.sock"
    vm = FakeQemu(socket_dir, name="vm", dial=path)
    async with (
        DaemonInside.start(socket_dir, monitors=[{"listen": str(path)}]) as daemon,
        vm.running(),
    ):
        await daemon.wait_armed("vm")
        path.unlink()
        await daemon.wait_log("the problem is over")
        assert vm.sessions == 1
        vm.panic()
        await daemon.wait_incident("vm", state="preserved")


@contextmanager
def nothing_there(directory: Path) -> Iterator[None]:
    shutil.rmtree(directory)
    directory.touch()  # and it can't be made anew
    try:
        yield
    finally:
        directory.unlink()
        directory.mkdir()


async def test_a_socket_that_can_t_be_bound_is_told_of_until_it_can(socket_dir: Path) -> None:
    directory = socket_dir / "run"
    directory.mkdir()
    path = directory / "dial-in.sock"
    async with DaemonInside.start(socket_dir, monitors=[{"listen": str(path)}]) as daemon:
        assert await readyz(daemon) == (200, "ok\n")
        with nothing_there(directory):
            await daemon.wait_log("there is a problem", count=2)
            (problem,) = (await daemon.call("status"))["problems"]
            assert problem.startswith(f"listening socket {path}: its file was removed or replaced")
            assert "can't be bound anew" in problem
            status, said = await readyz(daemon)
            assert (status, said) == (503, f"{problem}\n")
            assert await daemon.metric("panicd_problems") == 1
        await daemon.wait_log("the problem is over")
        assert (await daemon.call("status"))["problems"] == []
        assert await daemon.metric("panicd_problems") == 0


async def test_the_control_socket_is_bound_anew(socket_dir: Path) -> None:
    path = socket_dir / "run" / "control.sock"
    async with DaemonInside.start(socket_dir, control_socket=str(path)) as daemon:
        await daemon.call("status")
        with nothing_there(path.parent), pytest.raises(DaemonUnreachableError):
            await daemon.call("status")
        shutil.rmtree(path.parent)  # it is made again, too
        await daemon.wait_log("the problem is over", where=f"control socket {path}")
        assert (await daemon.call("status"))["problems"] == []
    assert not path.exists()


async def test_another_s_socket_in_its_place_is_left_alone(socket_dir: Path) -> None:
    path = socket_dir / "dial-in.sock"
    async with DaemonInside.start(socket_dir, monitors=[{"listen": str(path)}]) as daemon:
        other = trio.socket.socket(trio.socket.AF_UNIX)
        with other:
            path.unlink()
            await other.bind(str(path))
            other.listen()
            line = await daemon.wait_log("there is a problem", count=2)
            assert "somebody listens there already" in line["what"]
        await daemon.wait_log("the problem is over")


async def test_what_a_glob_passes_over_is_told(socket_dir: Path) -> None:
    elsewhere = socket_dir / "elsewhere"
    elsewhere.mkdir()
    vm = FakeQemu(elsewhere / "vm.qmp")
    link = socket_dir / "link.qmp"
    async with vm.running(), DaemonInside.start(socket_dir) as daemon:
        link.symlink_to(vm.socket)
        await daemon.wait_log("passed over", path=str(link))
        assert str(link) in (await daemon.call("status"))["passed_over"]
        link.unlink()
        while (await daemon.call("status"))["passed_over"]:
            await trio.lowlevel.checkpoint()
        assert await readyz(daemon) == (200, "ok\n")


async def is_told_of(daemon: ObservedDaemon, pattern: str, *lost: Path) -> None:
    """The sockets that are gone are told of wherever problems are."""
    (problem,) = (await daemon.call("status"))["problems"]
    assert problem == f"{pattern}: {connector.LOST}: {', '.join(map(str, lost))}"
    assert await readyz(daemon) == (503, f"{problem}\n")
    assert await daemon.metric("panicd_problems") == 1


async def nothing_is_told_of(daemon: ObservedDaemon) -> None:
    assert (await daemon.call("status"))["problems"] == []
    assert await readyz(daemon) == (200, "ok\n")
    assert await daemon.metric("panicd_problems") == 0


async def test_a_file_system_that_is_mounted_over_a_glob_s_directory_is_told_of_while_it_lasts(
    socket_dir: Path,
) -> None:
    directory = socket_dir / "small-disk"
    directory.mkdir()
    before = FakeQemu(directory / "before.qmp", name="before")
    after = FakeQemu(directory / "after.qmp", name="after")
    pattern = str(directory / "*.qmp")
    async with (
        DaemonInside.start(socket_dir, monitors=[{"glob": pattern}]) as daemon,
        before.running(),
    ):
        await daemon.wait_armed("before")
        with small_disk(socket_dir, "1m"):
            async with after.running():
                await daemon.wait_armed("after")
                await daemon.wait_log("there is a problem", where=pattern)
                await is_told_of(daemon, pattern, before.socket)
                before.panic()  # it is connected still
                await daemon.wait_incident("before", state="preserved")
                assert before.sessions == 1
        await daemon.wait_log("the problem is over", where=pattern)
        await nothing_is_told_of(daemon)


async def test_a_connected_monitor_whose_socket_is_removed_is_told_of_until_it_ends(
    socket_dir: Path,
) -> None:
    vms = [FakeQemu(socket_dir / f"{name}.qmp", name=name) for name in "abcde"]
    pattern = str(socket_dir / "*.qmp")
    async with DaemonInside.start(socket_dir) as daemon, AsyncExitStack() as running:
        for vm in vms:
            await running.enter_async_context(vm.running())
            await daemon.wait_armed(vm.socket.stem)
        vms[0].socket.unlink()
        await daemon.wait_log("there is a problem", where=pattern)
        await is_told_of(daemon, pattern, vms[0].socket)
        for vm in vms[1:]:
            vm.socket.unlink()
        some = ", ".join(str(vm.socket) for vm in vms[:3])
        await daemon.wait_log("there is a problem", what=f"{connector.LOST}: {some} and 2 more")
        for vm in vms:
            vm.close_session()
        await daemon.wait_log("the problem is over", where=pattern)
        await nothing_is_told_of(daemon)


async def test_a_qemu_that_ends_has_no_lost_socket(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # as long as it takes panicd in earnest
    async with DaemonInside.start(socket_dir) as daemon:
        async with RealQemu.start(socket_dir, guest=Guest.COUNT) as vm:
            await daemon.wait_armed("vm")
            await vm.witness.send("quit")
            await daemon.wait_log("monitor is gone")
        assert not daemon.logged("there is a problem")
