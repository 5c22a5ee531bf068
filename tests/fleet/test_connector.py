"""Monitors come, go, hang and die; real sockets, fake QEMUs."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import trio

from panicd.fleet import connector, supervision
from panicd.fleet.backoff import FIRST_RETRY, LAST_RETRY, Backoff
from panicd.fleet.connector import Connector
from panicd.host.problems import Problems
from panicd.incident.services import Services
from panicd.qemu.socket_table import DOES_NOT_ANSWER, TAKEN
from tests.parts.background import background
from tests.parts.daemon import DaemonInside
from tests.parts.fake import FakeQemu
from tests.parts.fake_libvirtd import MONITOR, FakeDomain, FakeLibvirtd
from tests.parts.proxy import RecordingProxy
from tests.parts.qmp import connect_qmp
from tests.parts.wire import Message

NOT_CONNECTED = "monitor is not connected"


class Tries:
    """Counts failed tries to connect, and makes the next ones soon."""

    def __init__(self) -> None:
        self._failed = 0
        self._more = trio.lowlevel.ParkingLot()

    def backoff(self) -> Backoff:
        tries = self

        class CountingBackoff(Backoff):
            def next(self) -> float:
                tries._failed += 1
                tries._more.unpark_all()
                return min(super().next(), 0.01)

        return CountingBackoff()

    async def wait_more(self, count: int) -> None:
        """Wait for so many more failures."""
        until = self._failed + count
        while self._failed < until:
            await self._more.park()


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> Tries:
    """Counts the tries to connect."""
    tries = Tries()
    monkeypatch.setattr(connector, "Backoff", tries.backoff)
    return tries


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A monitor that does not greet is given up soon: for tests in which none does in time."""
    monkeypatch.setattr(connector, "GREETING_TIMEOUT", 0.05)


@pytest.fixture
def bound(socket_dir: Path) -> Iterator[socket.socket]:
    """A monitor's socket that exists and is not listened on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(str(socket_dir / "vm.qmp"))
        sock.setblocking(False)
        yield sock


def fake(directory: Path, name: str = "vm") -> FakeQemu:
    return FakeQemu(directory / f"{name}.qmp", name=name)


def said(daemon: DaemonInside, domain: str = "vm") -> list[str]:
    """The reasons that the log gave for not being connected, in order."""
    return [line["reason"] for line in daemon.logged(NOT_CONNECTED, domain=domain)]


async def names(daemon: DaemonInside) -> list[str]:
    status: Message = await daemon.call("status")
    return [domain["domain"] for domain in status["domains"]]


async def test_monitor_that_appears_is_connected_and_one_that_vanishes_is_forgotten(
    socket_dir: Path,
) -> None:
    async with DaemonInside.start(socket_dir) as daemon, fake(socket_dir, "old").running():
        await daemon.wait_armed("old")
        async with fake(socket_dir, "new").running() as vm:
            await daemon.wait_armed("new")
            assert await names(daemon) == ["new", "old"]
            assert (await daemon.domain("new"))["monitor"] == str(vm.socket)
            vm.exit()
            await daemon.wait_log(NOT_CONNECTED, domain="new")
            assert not (await daemon.domain("new"))["connected"]
        vm.socket.unlink()
        await daemon.wait_log("monitor is gone", domain="new")
        await daemon.wait_domain("old", lambda domain: domain["connected"])
        assert await names(daemon) == ["old"]
        assert await daemon.metric("panicd_domain_up", domain="new") is None


async def test_monitors_that_are_there_already_are_connected(socket_dir: Path) -> None:
    async with (
        fake(socket_dir, "one").running(),
        fake(socket_dir, "two").running(),
        DaemonInside.start(socket_dir) as daemon,
    ):
        await daemon.wait_armed("one")
        await daemon.wait_armed("two")


async def test_socket_bound_before_it_listens_is_connected_once_it_does(
    socket_dir: Path, bound: socket.socket, tries: Tries
) -> None:
    behind = FakeQemu(socket_dir / "behind", name="vm")
    async with (
        DaemonInside.start(socket_dir) as daemon,
        behind.running(),
        background() as nursery,
    ):
        await daemon.wait_log(NOT_CONNECTED, reason="nobody listens on this socket")
        await tries.wait_more(3)
        bound.listen()
        listener = trio.socket.from_stdlib_socket(bound.dup())
        nursery.start_soon(RecordingProxy(listener, behind.socket, "accepted")._relay_sessions)
        await daemon.wait_armed("vm")
        assert said(daemon) == ["nobody listens on this socket"]
        assert await daemon.metric("panicd_monitor_reconnects_total") == 1


async def test_socket_whose_path_is_too_long_says_so(socket_dir: Path) -> None:
    directory = socket_dir / ("d" * 60) / ("d" * 60)
    directory.mkdir(parents=True)
    before = os.open(".", os.O_RDONLY)
    os.chdir(directory)  # as a QEMU can be started with a relative path
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind("vm.qmp")
    finally:
        os.fchdir(before)
        os.close(before)
    async with DaemonInside.start(socket_dir, monitors=[{"glob": f"{socket_dir}/*/*/*"}]) as daemon:
        line = await daemon.wait_log(NOT_CONNECTED)
        assert line["reason"].endswith("a socket's may have 107 (unix(7))")


@pytest.mark.usefixtures("impatient")
async def test_monitor_that_another_client_holds_is_connected_once_it_is_free(
    socket_dir: Path, tries: Tries, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        fake(socket_dir).running() as vm,
        connect_qmp(vm.socket) as holder,
        DaemonInside.start(socket_dir) as daemon,
    ):
        await daemon.wait_log(NOT_CONNECTED, domain="vm", reason=TAKEN)
        status = await daemon.domain("vm")
        assert not status["connected"]
        assert status["problem"] in said(daemon)
        assert status["attempts"] >= 1
        await tries.wait_more(3)
        # Its own earlier tries wait in the queue too, which is no other reason.
        assert said(daemon) == [TAKEN]

        monkeypatch.setattr(connector, "GREETING_TIMEOUT", 5.0)
        holder.hang_up()
        await daemon.wait_armed("vm")
        assert (await daemon.domain("vm"))["problem"] == ""


async def test_monitor_whose_queue_is_full_says_so(
    socket_dir: Path, bound: socket.socket, tries: Tries
) -> None:
    bound.listen(0)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as waiting:
        waiting.connect(bound.getsockname())
        async with DaemonInside.start(socket_dir) as daemon:
            await daemon.wait_log(NOT_CONNECTED, domain="vm", reason=DOES_NOT_ANSWER)
            await tries.wait_more(2)
            assert said(daemon) == [DOES_NOT_ANSWER]
            assert (await daemon.domain("vm"))["silent"]


async def test_monitor_that_dies_is_connected_again_when_it_is_back(socket_dir: Path) -> None:
    async with DaemonInside.start(socket_dir) as daemon:
        async with fake(socket_dir).running() as vm:
            await daemon.wait_armed("vm")
            vm.exit()
            await daemon.wait_log(NOT_CONNECTED, domain="vm")
        vm.socket.unlink()
        mark = daemon.mark()
        async with fake(socket_dir).running():
            await daemon.wait_armed("vm", since=mark)


async def test_session_that_is_cut_is_made_anew(socket_dir: Path) -> None:
    async with DaemonInside.start(socket_dir) as daemon, fake(socket_dir).running() as vm:
        await daemon.wait_armed("vm")
        mark = daemon.mark()
        vm.close_session()
        await daemon.wait_armed("vm", since=mark)
        assert vm.sessions == 2
        assert await daemon.metric("panicd_monitor_reconnects_total") == 1


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "greeting",
    [b"", b"SSH-2.0-OpenSSH_9.2\r\n", b"[]\r\n", b'{"QMP": {"version": 7}}\r\n', b"\xff\xfe\r\n"],
    ids=["none", "text", "array", "nonsense", "not-utf-8"],
)
async def test_monitor_that_talks_nonsense_costs_that_monitor_only(
    socket_dir: Path, tries: Tries, greeting: bytes
) -> None:
    bad = FakeQemu(socket_dir / "bad.qmp", greeting=greeting)
    async with (
        DaemonInside.start(socket_dir) as daemon,
        bad.running(),
        fake(socket_dir, "good").running() as good,
    ):
        await daemon.wait_log(NOT_CONNECTED, domain="bad")
        await tries.wait_more(3)
        await daemon.wait_armed("good")
        good.panic()
        await daemon.wait_incident("good", state="preserved")
        assert not (await daemon.domain("bad"))["connected"]


async def test_vms_dial_in_any_number_at_once(socket_dir: Path) -> None:
    listening = socket_dir / "listen.sock"
    async with (
        DaemonInside.start(socket_dir, monitors=[{"listen": str(listening)}]) as daemon,
        background() as nursery,
    ):
        vms = [FakeQemu(socket_dir, name=f"vm-{n}", dial=listening) for n in range(20)]
        for vm in vms:
            nursery.start_soon(vm.run)
        for vm in vms:
            await daemon.wait_armed(vm.machine.name)
        assert stat.S_IMODE(listening.stat().st_mode) == 0o660
        assert sorted(await names(daemon)) == sorted(vm.machine.name for vm in vms)

        vms[7].exit()
        await daemon.wait_log(NOT_CONNECTED, domain="vm-7")
        await daemon.wait_domain("vm-8", lambda domain: domain["connected"])
        assert "vm-7" not in await names(daemon)


async def test_vm_that_dials_in_again_is_known_by_its_uuid(socket_dir: Path) -> None:
    listening = socket_dir / "listen.sock"
    uuid = "5e1f0a6c-9c3b-4f0e-8d2a-1b7c3d9e4f51"
    vm = FakeQemu(socket_dir, name="vm", uuid=uuid, dial=listening, reconnect=0.0)
    async with (
        DaemonInside.start(socket_dir, monitors=[{"listen": str(listening)}]) as daemon,
        background() as nursery,
    ):
        nursery.start_soon(vm.run)
        await daemon.wait_armed("vm")
        vm.panic()
        incident = await daemon.wait_incident("vm", state="preserved")
        mark = daemon.mark()
        vm.close_session()
        await daemon.wait_log("open incident found again", incident=incident.id, since=mark)
        status = await daemon.wait_domain("vm", lambda domain: domain["incident"] == incident.id)
        assert status["uuid"] == uuid


async def test_vm_with_two_monitors_is_looked_after_through_one(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "TWIN_LEAVES", 0.05)
    uuid = "5e1f0a6c-9c3b-4f0e-8d2a-1b7c3d9e4f52"
    one = FakeQemu(socket_dir / "one.qmp", name="vm", uuid=uuid)
    other = FakeQemu(socket_dir / "other.qmp", name="vm", uuid=uuid)
    async with one.running(), DaemonInside.start(socket_dir) as daemon:
        await daemon.wait_armed("vm")
        async with other.running():
            why = f"a second monitor of vm; panicd uses {one.socket}"
            await daemon.wait_log(NOT_CONNECTED, domain="other", reason=why)
            assert (await daemon.domain("other"))["spare_of"] == "vm"
            assert await daemon.metric("panicd_domain_up", domain="vm") == 1
            assert await daemon.metric("panicd_domain_up", domain="other") is None
            assert await daemon.metric("panicd_domains_exposed", reason="no-monitor") == 0
            one.panic()
            await daemon.wait_incident("vm", state="preserved")
        assert len(daemon.incidents()) == 1


def test_backoff_doubles_up_to_a_cap_and_jitters() -> None:
    backoff = Backoff()
    waits = [backoff.next() for _ in range(40)]
    expected = [min(LAST_RETRY, FIRST_RETRY * 2**n) for n in range(40)]
    for wait, middle in zip(waits, expected, strict=True):
        assert 0.75 * middle <= wait <= 1.25 * middle
    assert len(set(waits[20:])) > 1
    backoff.reset()
    assert backoff.next() <= 1.25 * FIRST_RETRY


async def test_a_monitor_that_two_patterns_match_is_dialled_by_one(socket_dir: Path) -> None:
    monitors = [{"glob": f"{socket_dir}/*.qmp"}, {"glob": f"{socket_dir}/vm*.qmp"}]
    async with DaemonInside.start(socket_dir, monitors=monitors) as daemon:
        async with fake(socket_dir).running() as vm:
            await daemon.wait_armed("vm")
            assert await names(daemon) == ["vm"]
            assert said(daemon) in ([], ["nobody listens on this socket"])
            vm.exit()
            vm.socket.unlink(missing_ok=True)
            await daemon.wait_log("monitor is gone", domain="vm")
        since = daemon.mark()
        async with fake(socket_dir).running():
            await daemon.wait_armed("vm", since=since)


@pytest.mark.parametrize("path", ["x.qmp", "/run/../x.qmp"])
async def test_a_monitor_in_the_xml_that_can_t_be_dialled_costs_nobody(
    socket_dir: Path, path: str
) -> None:
    """Such a domain is looked after by libvirt's API, as one without a monitor."""
    odd = FakeDomain("odd", 2)
    odd.inside += MONITOR.format(path=path)
    async with FakeLibvirtd.start(socket_dir, FakeDomain("vm", 1), odd) as libvirtd:
        settings = {"uri": libvirtd.uri}
        async with DaemonInside.start(
            socket_dir, libvirt=settings, monitors=[{"libvirt": True}]
        ) as daemon:
            await daemon.wait_armed("vm")
            await daemon.wait_armed("odd")


async def test_a_domain_that_ends_as_its_monitor_is_found_costs_nobody() -> None:
    """It is no longer there by the time the dial's task begins."""
    rounds, done = iter(range(40)), trio.Event()

    class Libvirt:
        monitors: frozenset[str] = frozenset()

        async def changes(self) -> None:
            await trio.lowlevel.checkpoint()
            self.monitors = frozenset() if self.monitors else frozenset({"/none/vm.qmp"})
            if next(rounds, None) is None:
                done.set()
                await trio.sleep_forever()

    fleet = SimpleNamespace(domains={})
    services = SimpleNamespace(libvirt=Libvirt(), fleet=fleet, problems=Problems())
    async with background() as nursery:
        await nursery.start(Connector(cast("Services", services)).dial_found)
        await done.wait()
