"""What older versions of QEMU can't do, on fakes that behave as they were seen to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.parts.daemon import RunningDaemon
from tests.parts.fake import FakeQemu
from tests.parts.profile import QEMU_1_5, QEMU_1_6, QEMU_2_5, QEMU_2_8, Profile


async def test_ignore_of_an_irreversible_panic_takes_the_fallback(socket_dir: Path) -> None:
    policy = {"on_crash": "ignore", "fallback": "restart"}
    fake = FakeQemu(socket_dir / "vm.qmp", profile=QEMU_1_6)
    async with RunningDaemon.start(socket_dir, policy) as daemon, fake.running():
        await daemon.wait_armed("vm")
        fake.panic()
        incident = await daemon.wait_incident("vm", ending="restarted")
        assert incident.decisions == [("restart", "irreversible")]
        assert fake.changing_commands == ["system_reset", "cont"]


@pytest.mark.parametrize(
    ("notifier", "decision"),
    [("required", ("preserve", "unrequested-device")), ("any", ("restart", "on-crash"))],
)
async def test_builtin_device_counts_only_where_any_notifier_does(
    socket_dir: Path, notifier: str, decision: tuple[str, str]
) -> None:
    policy = {"on_crash": "restart", "panic_notifier": notifier}
    fake = FakeQemu(socket_dir / "vm.qmp", profile=QEMU_1_5, devices=())
    async with RunningDaemon.start(socket_dir, policy) as daemon, fake.running():
        await daemon.wait_armed("vm")
        assert (await daemon.domain("vm"))["panic_device"] == "builtin"
        fake.panic()
        restarted = notifier == "any"
        incident = await daemon.wait_incident(
            "vm",
            ending="restarted" if restarted else "",
            state="" if restarted else "preserved",
        )
        assert incident.decisions == [decision]
        assert fake.changing_commands == (["system_reset", "cont"] if restarted else [])


@pytest.mark.parametrize(
    "profile", [QEMU_1_5, QEMU_1_6, QEMU_2_5, QEMU_2_8], ids=lambda p: ".".join(map(str, p.version))
)
async def test_dump_and_restart_on_every_version(socket_dir: Path, profile: Profile) -> None:
    policy = {"on_crash": "coredump-restart", "coredump": {"min_free": "1MiB"}}
    fake = FakeQemu(socket_dir / "vm.qmp", profile=profile, shutdown_action="pause")
    async with RunningDaemon.start(socket_dir, policy) as daemon, fake.running():
        await daemon.wait_armed("vm")
        fake.panic()
        incident = await daemon.wait_incident("vm", ending="restarted")
        assert ("Dump", "done") in incident.steps
        dumped = ["getfd", "dump-guest-memory"]
        assert fake.changing_commands == [*dumped, "system_reset", "cont"]
        (dump,) = (socket_dir / "state" / "coredumps" / str(os.geteuid()) / "vm").iterdir()
        assert dump.name.endswith(".elf.zst")


async def test_domain_that_cannot_be_armed_says_so(socket_dir: Path) -> None:
    fake = FakeQemu(socket_dir / "vm.qmp", profile=QEMU_2_8)
    async with RunningDaemon.start(socket_dir, {"on_crash": "restart"}) as daemon, fake.running():
        await daemon.wait_log("domain is not known to be armed", domain="vm", armed="unknown")
        assert (await daemon.domain("vm"))["armed"] == "unknown"
        assert await daemon.metric("panicd_domain_armed", domain="vm") == 0

        fake.panic()  # told twice, pause and poweroff, and QEMU ends
        incident = await daemon.wait_incident("vm", ending="qemu-exited")
        assert incident.decisions[-1] == ("none", "qemu-exited")
        assert daemon.logged("guest panicked again") == [], "it is one panic"
        assert fake.changing_commands == []
