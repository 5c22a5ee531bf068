"""`panicd incident ID --log`: what is shown of a dump, and what is said where there is none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.parts.commands import FAILED, ask, ask_json
from tests.parts.daemon import DaemonInside, LoggedIncident, RunningDaemon
from tests.parts.fake import FakeQemu
from tests.parts.linux import Kernel, linux_guest

PANIC = "Kernel panic - not syncing: sysrq triggered crash"


async def preserved(daemon: DaemonInside, vm: FakeQemu) -> LoggedIncident:
    await daemon.wait_armed("vm")
    vm.panic()
    incident = await daemon.wait_incident("vm", state="preserved")
    await ask(daemon, "ack", incident.id, "--why", "seen")  # all of it is in the journal by now
    return incident


async def test_incident_without_a_dump_or_evidence_says_so(socket_dir: Path) -> None:
    vm = FakeQemu(socket_dir / "vm.qmp")
    async with DaemonInside.start(socket_dir) as daemon, vm.running():
        incident = await preserved(daemon, vm)
        said = await ask(daemon, "incident", incident.id, "--log", status=FAILED)
        why = f"incident {incident.id} has no memory dump, and its evidence has none"
        assert said == f"panicd: no kernel log: {why}\n"


async def test_without_a_dump_the_log_that_was_kept_is_shown(socket_dir: Path) -> None:
    console = socket_dir / "console"
    console.write_bytes(b"boot\x1b[2J\n" + b"[    1.000000] " + PANIC.encode() + b"\n")
    policy = {"evidence": {"budget": "3s", "consoles": [str(console)]}}
    vm = FakeQemu(socket_dir / "vm.qmp")
    async with DaemonInside.start(socket_dir, policy) as daemon, vm.running():
        incident = await preserved(daemon, vm)
        shown = await ask(daemon, "incident", incident.id, "--log")
        assert shown.splitlines()[-2:] == [r"boot\x1b[2J", f"[    1.000000] {PANIC}"]
        answer = await ask_json(daemon, "incident", incident.id, "--log")
        assert answer["panic_line"] == PANIC
        kept = socket_dir / "state" / "incidents" / incident.id / "console-0.log"
        assert answer["log_file"] == str(kept)
        kept.unlink()
        await ask(daemon, "incident", incident.id, "--log", status=FAILED)


async def test_dump_without_a_log_and_dump_that_is_gone_say_so(socket_dir: Path) -> None:
    vm = FakeQemu(socket_dir / "vm.qmp")
    policy = {"on_crash": "coredump-preserve", "coredump": {"min_free": "1MiB", "format": "elf"}}
    async with DaemonInside.start(socket_dir, policy) as daemon, vm.running():
        incident = await preserved(daemon, vm)
        said = await ask(daemon, "incident", incident.id, "--log", status=FAILED)
        assert said.startswith("panicd: no kernel log: no VMCOREINFO: the VM has no vmcoreinfo")
        assert "its guest has not loaded the driver (qemu_fw_cfg)" in said
        (dump,) = (socket_dir / "state" / "coredumps" / str(os.geteuid()) / "vm").iterdir()
        dump.unlink()
        said = await ask(daemon, "incident", incident.id, "--log", "--json", status=FAILED)
        assert said.startswith(f"panicd: no kernel log: its dump is no longer there: {dump}")


@pytest.mark.real
@pytest.mark.linux
async def test_log_of_a_linux_guest_is_shown(socket_dir: Path, linux_kernel: Kernel) -> None:
    policy = {"on_crash": "coredump-destroy", "coredump": {"min_free": "1MiB"}}
    async with (
        RunningDaemon.start(socket_dir, policy, time_limit=120) as daemon,
        linux_guest(socket_dir, linux_kernel, paused=True) as guest,
    ):
        await daemon.wait_armed("linux")
        await guest.vm.start_guest()
        incident = await daemon.wait_incident("linux", ending="destroyed")
        shown = (await ask(daemon, "incident", incident.id, "--log")).splitlines()
        assert "Linux version " in shown[0]
        assert any(line.endswith(f"] {PANIC}") for line in shown)
        answer = await ask_json(daemon, "incident", incident.id, "--log")
        assert (answer["panic_line"], answer["complete"]) == (PANIC, True)
        assert len(answer["lines"]) == len(shown)
