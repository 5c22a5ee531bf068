"""Ending a QEMU that does not want to end, and endings that are not panicd's."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from panicd.demo.guests import Guest
from tests.parts.daemon import RunningDaemon
from tests.parts.patience import patiently
from tests.parts.qemu import RealQemu
from tests.parts.small_disk import fill, small_disk
from tests.parts.vitals import was_signalled

pytestmark = pytest.mark.real


@pytest.fixture(name="disk")
def small_disk_of_a_test(socket_dir: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    with small_disk(socket_dir, "1m") as disk:
        yield disk


async def hang_in_panic(daemon: RunningDaemon, vm: RealQemu) -> None:
    """Have a guest panic, and its QEMU hang before panicd can say ``quit``."""
    await daemon.wait_armed(vm.name)
    with daemon.frozen():
        await vm.press_key()
        await vm.wait_event("STOP")
        os.kill(vm.pid, signal.SIGSTOP)


async def test_a_qemu_that_hangs_is_killed(socket_dir: Path) -> None:
    policy = {"on_crash": "destroy", "timeouts": {"quit": "200ms", "terminate": "200ms"}}
    async with (
        RunningDaemon.start(socket_dir, policy) as daemon,
        RealQemu.start(socket_dir, guest=Guest.PANIC_ON_KEY) as vm,
    ):
        await hang_in_panic(daemon, vm)
        assert await vm.wait_exit() == -signal.SIGKILL
        incident = await daemon.wait_incident("vm", ending="destroyed")
        assert incident.steps[-3:] == [
            ("Quit", "failed"),
            ("Terminate", "failed"),
            ("Kill", "done"),
        ]


async def test_a_hung_qemu_is_taken_for_no_other(socket_dir: Path) -> None:
    """One hangs and is being ended; another one hangs, and nothing was begun about that."""
    policy = {"on_crash": "destroy", "timeouts": {"quit": "200ms", "terminate": "1h"}}
    elsewhere = socket_dir / "e"
    elsewhere.mkdir()
    async with (
        RunningDaemon.start(socket_dir, policy, time_limit=40) as daemon,
        RealQemu.start(socket_dir, name="a", guest=Guest.PANIC_ON_KEY) as ended,
        RealQemu.start(elsewhere, name="b") as other,
    ):
        await hang_in_panic(daemon, ended)
        await daemon.wait_log("step begins", step="Terminate")
        while not was_signalled(ended.pid):
            await trio.lowlevel.checkpoint()
        await daemon.kill()
        ended.socket.unlink()
        os.kill(other.pid, signal.SIGSTOP)
        other.socket.rename(socket_dir / "b.qmp")
        await daemon.start_again()
        while not daemon.logged("monitor is not connected", domain="b", since=daemon.began):
            assert not was_signalled(other.pid)
            await trio.lowlevel.checkpoint()
        assert not was_signalled(other.pid)
        (waits,) = (await daemon.call("status"))["waiting"]
        assert (waits["domain"], waits["incident_state"]) == ("a", "acting")


async def test_no_signal_is_sent_that_the_journal_does_not_know_of(
    socket_dir: Path, disk: Path
) -> None:
    policy = {"on_crash": "destroy", "timeouts": {"quit": patiently(2), "terminate": "200ms"}}
    async with (
        RunningDaemon.start(socket_dir, policy, state_directory=str(disk), time_limit=60) as daemon,
        RealQemu.start(socket_dir, guest=Guest.PANIC_ON_KEY) as vm,
    ):
        await hang_in_panic(daemon, vm)
        await daemon.wait_log("step ended", step="AwaitQuiet")  # quit is given
        filler = fill(disk)
        await daemon.wait_log("step begins", step="Terminate")
        await daemon.wait_log("the journal can't be written")
        assert not was_signalled(vm.pid)
        # Nor is one when it is found hung.
        await daemon.wait_log("QEMU does not answer, so panicd goes on ending it")
        await daemon.wait_log("the journal can't be written", count=2)
        assert not was_signalled(vm.pid)
        filler.unlink()
        await daemon.wait_incident("vm", ending="destroyed")
        assert await vm.wait_exit() == -signal.SIGKILL


async def test_qemu_that_exits_by_itself_is_an_incident_that_says_so(socket_dir: Path) -> None:
    async with (
        RunningDaemon.start(socket_dir, {"on_crash": "restart"}) as daemon,
        RealQemu.start(socket_dir, guest=Guest.PANIC_ON_KEY) as vm,
    ):
        await daemon.wait_armed("vm")
        await vm.set_panic_action("shutdown")  # as it is before panicd arms it
        await vm.press_key()

        assert await vm.wait_exit() == 0
        incident = await daemon.wait_incident("vm", ending="qemu-exited")
        assert incident.decisions == [("none", "qemu-exited")]


async def test_qemu_that_dies_with_its_panicked_guest_ends_the_incident(socket_dir: Path) -> None:
    async with (
        RunningDaemon.start(socket_dir, {"on_crash": "preserve"}) as daemon,
        RealQemu.start(socket_dir, guest=Guest.PANIC_ON_KEY) as vm,
    ):
        await daemon.wait_armed("vm")
        await vm.press_key()
        await daemon.wait_incident("vm", state="preserved")
        vm.kill()

        await daemon.wait_incident("vm", ending="qemu-gone")
        assert await daemon.metric("panicd_foreign_actions_total", action="exit") == 1
