"""Ending a QEMU that does not want to end, and endings that are not panicd's."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from panicd.demo.guests import Guest
from tests.parts.daemon import RunningDaemon
from tests.parts.qemu import RealQemu

pytestmark = pytest.mark.real


async def test_a_qemu_that_hangs_is_killed(socket_dir: Path) -> None:
    policy = {"on_crash": "destroy", "timeouts": {"quit": "200ms", "terminate": "200ms"}}
    async with (
        RunningDaemon.start(socket_dir, policy) as daemon,
        RealQemu.start(socket_dir, guest=Guest.PANIC_ON_KEY) as vm,
    ):
        await daemon.wait_armed("vm")
        with daemon.frozen():
            await vm.press_key()
            await vm.wait_event("STOP")
            os.kill(vm.pid, signal.SIGSTOP)

        assert await vm.wait_exit() == -signal.SIGKILL
        incident = await daemon.wait_incident("vm", ending="destroyed")
        assert incident.steps[-3:] == [
            ("Quit", "failed"),
            ("Terminate", "failed"),
            ("Kill", "done"),
        ]


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
