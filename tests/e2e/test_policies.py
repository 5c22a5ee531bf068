"""Every ``on_crash`` on a real QEMU, each with the proof that it was carried out."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from panicd.demo.guests import Guest
from tests.parts.daemon import LoggedIncident, RunningDaemon
from tests.parts.qemu import RealQemu

pytestmark = pytest.mark.real

ENOUGH_SPACE = {"min_free": "1MiB", "format": "elf"}
"""Coredump settings for a test: its machine may be nearly full, and shall not matter."""


def events(vm: RealQemu, since: int) -> list[str]:
    """The names of the events that QEMU sent since ``vm.witness.mark()``."""
    return [message["event"] for message in vm.witness.messages[since:] if "event" in message]


def dumps(directory: Path) -> list[Path]:
    """The files below the directory of dumps, whatever they are called."""
    return [path for path in directory.rglob("*") if path.is_file()]


def only_dump(directory: Path, incident: LoggedIncident) -> Path:
    """Check that there is one dump, complete and nobody else's to read, and return its path."""
    (dump,) = dumps(directory)
    assert dump == directory / str(os.geteuid()) / "vm" / f"{incident.id}.elf"
    assert dump.read_bytes()[:4] == b"\x7fELF"
    assert dump.stat().st_size > 16 * 2**20  # the guest's whole memory
    assert stat.S_IMODE(dump.stat().st_mode) == 0o600
    assert stat.S_IMODE(dump.parent.stat().st_mode) == 0o700
    assert ("Dump", "done") in incident.steps
    return dump


@pytest.fixture
def coredumps(socket_dir: Path) -> Path:
    """Where dumps go."""
    return socket_dir / "state" / "coredumps"


@pytest.mark.parametrize("coredump", ["", "coredump-"])
async def test_destroy_ends_the_process(socket_dir: Path, coredumps: Path, coredump: str) -> None:
    policy = {"on_crash": f"{coredump}destroy", "coredump": ENOUGH_SPACE}
    async with (
        RunningDaemon.start(socket_dir, policy) as daemon,
        RealQemu.start(socket_dir, guest=Guest.PANIC_ON_KEY) as vm,
    ):
        await daemon.wait_armed("vm")
        mark = vm.witness.mark()
        await vm.press_key()

        assert await vm.wait_exit() == 0
        incident = await daemon.wait_incident("vm", ending="destroyed")
        assert incident.decisions == [(f"{coredump}destroy", "on-crash")]
        shutdown = await vm.wait_event("SHUTDOWN")
        assert shutdown["data"]["reason"] == "host-qmp-quit"
        assert "RESUME" not in events(vm, mark)
        if coredump:
            only_dump(coredumps, incident)
        else:
            assert dumps(coredumps) == []


@pytest.mark.parametrize("coredump", ["", "coredump-"])
async def test_restart_resets_and_continues_once(
    socket_dir: Path, coredumps: Path, coredump: str
) -> None:
    policy = {"on_crash": f"{coredump}restart", "coredump": ENOUGH_SPACE}
    async with (
        RunningDaemon.start(socket_dir, policy) as daemon,
        RealQemu.start(socket_dir, guest=Guest.PANIC_ON_KEY, proxied=True) as vm,
    ):
        await daemon.wait_armed("vm")
        mark = vm.witness.mark()
        await vm.press_key()

        incident = await daemon.wait_incident("vm", ending="restarted")
        assert incident.decisions == [(f"{coredump}restart", "on-crash")]
        dumped = ["DUMP_COMPLETED"] if coredump else []
        await vm.wait_event("RESUME", since=mark)  # QEMU tells one monitor after the other
        assert events(vm, mark) == ["GUEST_PANICKED", "STOP", *dumped, "RESET", "RESUME"]
        assert await vm.status() == "running"
        await vm.wait_counting()
        dump = ["getfd", "dump-guest-memory"] if coredump else []
        assert vm.proxy.changing_commands == ["set-action", *dump, "system_reset", "cont"]
        if coredump:
            only_dump(coredumps, incident)


@pytest.mark.parametrize("coredump", ["", "coredump-"])
async def test_preserve_withholds_cont(socket_dir: Path, coredumps: Path, coredump: str) -> None:
    policy = {"on_crash": f"{coredump}preserve", "coredump": ENOUGH_SPACE}
    async with (
        RunningDaemon.start(socket_dir, policy) as daemon,
        RealQemu.start(socket_dir, guest=Guest.PANIC_ON_KEY, proxied=True) as vm,
    ):
        await daemon.wait_armed("vm")
        await vm.press_key()

        incident = await daemon.wait_incident("vm", state="preserved")
        assert incident.decisions == [(f"{coredump}preserve", "on-crash")]
        counted = await vm.counter()
        assert counted > 0
        assert await vm.status() == "guest-panicked"
        assert await vm.counter() == counted
        dump = ["getfd", "dump-guest-memory"] if coredump else []
        assert vm.proxy.changing_commands == ["set-action", *dump]
        if coredump:
            only_dump(coredumps, incident)


async def test_ignore_lets_the_guest_run_on(socket_dir: Path) -> None:
    async with (
        RunningDaemon.start(socket_dir, {"on_crash": "ignore"}) as daemon,
        RealQemu.start(socket_dir, guest=Guest.PANIC_ON_KEY, proxied=True) as vm,
    ):
        await daemon.wait_armed("vm")
        mark = vm.witness.mark()
        await vm.press_key()

        incident = await daemon.wait_incident("vm", state="running-on")
        assert incident.decisions == [("ignore", "on-crash")]
        assert incident.steps == []
        await vm.wait_counting()
        panic = await vm.wait_event("GUEST_PANICKED", since=mark)
        assert panic["data"] == {"action": "run"}
        assert events(vm, mark) == ["GUEST_PANICKED"]
        assert [
            call["arguments"] for call in vm.proxy.calls if call["execute"] == "set-action"
        ] == [
            {"panic": "pause"},
            {"panic": "none"},
        ]
        assert vm.proxy.changing_commands == ["set-action", "set-action"]


async def test_ignore_continues_once_where_the_panic_stopped_the_guest(socket_dir: Path) -> None:
    async with (
        RunningDaemon.start(socket_dir, {"on_crash": "ignore"}) as daemon,
        RealQemu.start(socket_dir, guest=Guest.PANIC_AND_COUNT, paused=True, proxied=True) as vm,
    ):
        await daemon.wait_armed("vm")
        await vm.set_panic_action("pause")  # somebody else has other plans
        await vm.witness.execute("cont")

        incident = await daemon.wait_incident("vm", state="running-on")
        assert incident.decisions == [("ignore", "on-crash")]
        assert await vm.status() == "running"
        await vm.wait_counting()
        assert vm.proxy.changing_commands == ["set-action", "set-action", "cont"]


async def test_coredump_ignore_stops_dumps_and_continues(socket_dir: Path, coredumps: Path) -> None:
    policy = {"on_crash": "coredump-ignore", "coredump": ENOUGH_SPACE}
    async with (
        RunningDaemon.start(socket_dir, policy) as daemon,
        RealQemu.start(socket_dir, guest=Guest.PANIC_AND_COUNT, paused=True, proxied=True) as vm,
    ):
        await daemon.wait_armed("vm")
        await vm.witness.execute("cont")

        incident = await daemon.wait_incident("vm", state="running-on")
        assert incident.decisions == [("coredump-ignore", "on-crash")]
        only_dump(coredumps, incident)
        assert await vm.status() == "running"
        await vm.wait_counting()
        changing = ["set-action", "getfd", "dump-guest-memory", "cont"]
        assert vm.proxy.changing_commands == changing
