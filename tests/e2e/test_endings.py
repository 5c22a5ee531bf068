"""How a VM ended, told apart."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from panicd.demo.guests import Guest
from tests.parts.daemon import DaemonInside
from tests.parts.fake import FakeQemu
from tests.parts.profile import RunState
from tests.parts.qemu import RealQemu, accelerator

PIIX4_POWER_MANAGEMENT = 0x80000B00  # PCI configuration address of 00:01.3 in QEMU's pc machine
POWER_OFF = [
    # Intel 82371AB (PIIX4), power management: PMBA, PMREGMISC, PMCNTRL with SLP_EN and soft off.
    f"o /w 0xcf8 {PIIX4_POWER_MANAGEMENT | 0x40:#x}",
    "o /w 0xcfc 0x601",
    f"o /w 0xcf8 {PIIX4_POWER_MANAGEMENT | 0x80:#x}",
    "o /b 0xcfc 1",
    "o /h 0x604 0x2000",
]


async def end(vm: RealQemu, how: str) -> None:
    """Have a VM end."""
    match how:
        case "SIGSEGV" | "SIGABRT" | "SIGKILL" | "SIGTERM":
            os.kill(vm.pid, signal.Signals[how])
        case "quit":
            await vm.witness.send("quit")
        case "panic":
            await vm.set_panic_action("shutdown")  # as it is before panicd arms it
            await vm.panic()
        case "power-off":
            for command in POWER_OFF:
                await vm.witness.send("human-monitor-command", {"command-line": command})
        case "reboot":
            await vm.witness.execute("set-action", {"reboot": "shutdown"})
            await vm.witness.send("human-monitor-command", {"command-line": "o /b 0x64 0xfe"})
        case "exit":
            await vm.witness.send("human-monitor-command", {"command-line": "o /b 0xf4 1"})
        case "bad migration":
            await vm.witness.send("migrate-incoming", {"uri": "exec:echo no machine"})


@pytest.mark.real
@pytest.mark.parametrize(
    ("how", "cause"),
    [
        ("SIGSEGV", "qemu-crashed"),
        ("SIGABRT", "qemu-crashed"),
        ("SIGKILL", "host-killed"),
        ("SIGTERM", "host-quit"),
        ("quit", "host-quit"),
        ("panic", "guest-panic"),
        ("power-off", "guest-shutdown"),
        ("reboot", "guest-reset"),
        ("exit", "guest-shutdown or qemu-error"),
        ("bad migration", "qemu-error"),
    ],
)
async def test_ends_of_a_qemu_are_told_apart(socket_dir: Path, how: str, cause: str) -> None:
    async with (
        DaemonInside.start(socket_dir) as daemon,
        RealQemu.start(
            socket_dir,
            guest=Guest.COUNT,
            paused=how == "bad migration",
            extra=(
                *("-device", "isa-debug-exit,iobase=0xf4,iosize=4"),
                *(("-incoming", "defer") if how == "bad migration" else ()),
            ),
        ) as vm,
    ):
        await daemon.wait_armed("vm")
        await end(vm, how)
        await vm.wait_exit()
        ended = await daemon.wait_log("domain ended", domain="vm")
        if ended["cause"] == "gone":
            pytest.skip("this kernel does not tell how a process ended (Linux 6.15 on)")
        if how == "exit":
            # Before 9.1 the device ended QEMU's process; now QEMU says that its guest shut down.
            said = [event["data"]["reason"] for event in vm.events if event["event"] == "SHUTDOWN"]
            cause = said[0] if said else "qemu-error"
            assert cause in {"guest-shutdown", "qemu-error"}
        assert ended["cause"] == cause
        assert len(daemon.incidents()) == (how == "panic")


@pytest.mark.real
async def test_connection_that_ends_alone_is_not_taken_for_more(socket_dir: Path) -> None:
    async with (
        DaemonInside.start(socket_dir) as daemon,
        RealQemu.start(socket_dir, guest=Guest.COUNT) as vm,
    ):
        await daemon.wait_armed("vm")
        mark = daemon.mark()
        monitor = {"type": "chardev", "id": "monitor"}
        await vm.witness.execute("yank", {"instances": [monitor]})
        ended = await daemon.wait_log("connection ended", domain="vm")
        assert ended["cause"] == "disconnected"
        await daemon.wait_armed("vm", since=mark)
        assert daemon.incidents() == []


@pytest.mark.real
@pytest.mark.skipif(accelerator() != "kvm", reason="an internal error is KVM's")
async def test_internal_error_of_kvm_is_not_a_panic(socket_dir: Path) -> None:
    async with (
        DaemonInside.start(socket_dir, {"on_crash": "restart"}) as daemon,
        RealQemu.start(socket_dir, guest=Guest.KVM_ERROR_ON_KEY, proxied=True) as vm,
    ):
        await daemon.wait_armed("vm")
        await vm.wait_counting()
        await vm.hmp("sendkey a")
        await daemon.wait_log("seen", what="guest stopped, run state internal-error", domain="vm")
        assert await vm.status() == "internal-error"
        assert daemon.incidents() == []
        assert vm.proxy.acting_commands == []


async def test_internal_error_is_not_a_panic(socket_dir: Path) -> None:
    fake = FakeQemu(socket_dir / "vm.qmp")
    async with DaemonInside.start(socket_dir, {"on_crash": "restart"}) as daemon, fake.running():
        await daemon.wait_armed("vm")
        fake.machine.stop(RunState.INTERNAL_ERROR)
        await daemon.wait_log("seen", what="guest stopped, run state internal-error", domain="vm")
        assert (await daemon.domain("vm"))["run_state"] == "internal-error"
        assert daemon.incidents() == []
        assert fake.acting_commands == []
