"""What older versions of QEMU can't do, on fakes that behave as they were seen to."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from panicd.demo.guests import Guest
from tests.parts.daemon import RunningDaemon
from tests.parts.fake import FakeQemu
from tests.parts.profile import (
    QEMU_1_5,
    QEMU_1_6,
    QEMU_1_7,
    QEMU_2_0,
    QEMU_2_5,
    QEMU_2_6,
    QEMU_2_8,
    QEMU_7_2,
    Profile,
)
from tests.parts.qemu import RealQemu


def version(profile: Profile) -> str:
    return ".".join(map(str, profile.version))


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


@pytest.mark.parametrize("profile", [QEMU_1_5, QEMU_1_6, QEMU_2_5, QEMU_2_8], ids=version)
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


BLOCKING = [QEMU_1_5, QEMU_2_0, QEMU_2_5]
"""Those whose dumps can't be detached: they answer nobody until the dump is over."""


@pytest.mark.parametrize("profile", BLOCKING, ids=version)
@pytest.mark.parametrize(
    ("on_crash", "required", "ends"),
    [
        ("coredump-restart", False, {"ending": "restarted"}),
        ("coredump-restart", True, {"state": "preserved"}),
        ("coredump-preserve", True, {"state": "preserved"}),
    ],
)
async def test_blocking_dump_that_outlasts_its_time_has_failed(
    socket_dir: Path, profile: Profile, on_crash: str, required: bool, ends: dict[str, Any]
) -> None:
    coredump = {"min_free": "1MiB", "timeout": "1s", "required": required}
    policy = {"on_crash": on_crash, "panic_notifier": "any", "coredump": coredump}
    fake = FakeQemu(socket_dir / "vm.qmp", profile=profile)
    fake.hold_dumps()
    async with RunningDaemon.start(socket_dir, policy) as daemon, fake.running():
        await daemon.wait_armed("vm")
        fake.panic()
        incident = await daemon.wait_incident("vm", **ends)
        assert incident.details[incident.steps.index(("Dump", "failed"))].startswith("timeout: ")
        decisions = [(on_crash, "on-crash")]
        assert incident.decisions == decisions + [("preserve", "dump-failed")] * required
        restarted = ["system_reset", "cont"] if "ending" in ends else []
        assert fake.changing_commands == ["getfd", "dump-guest-memory", *restarted]
        assert fake.sessions == 1, "the session goes on"
        assert await daemon.metric("panicd_coredump_failures_total", reason="timeout") == 1
        left = (socket_dir / "state" / "coredumps").rglob("*")
        assert [path for path in left if path.is_file()] == []


@pytest.mark.parametrize("profile", [QEMU_2_0, QEMU_7_2], ids=version)
async def test_dump_whose_answer_is_lost_each_time_is_not_made_for_ever(
    socket_dir: Path, profile: Profile
) -> None:
    coredump = {"min_free": "1MiB", "required": True}
    policy = {"on_crash": "coredump-restart", "coredump": coredump}
    fake = FakeQemu(socket_dir / "vm.qmp", profile=profile)
    fake.cut_before("dump-guest-memory", times=None)
    async with RunningDaemon.start(socket_dir, policy) as daemon, fake.running():
        await daemon.wait_armed("vm")
        fake.panic()
        incident = await daemon.wait_incident("vm", state="preserved")
        assert incident.decisions[-1] == ("preserve", "dump-failed")
        assert fake.acting_commands == ["getfd", "dump-guest-memory"] * 2


@pytest.mark.parametrize("command", ["query-memory-size-summary", "system_reset", "quit"])
async def test_nothing_that_loses_its_answer_is_begun_for_ever(
    socket_dir: Path, command: str
) -> None:
    on_crash = "destroy" if command == "quit" else "coredump-restart"
    coredump = {"min_free": "1MiB", "required": True}
    policy = {"on_crash": on_crash, "coredump": coredump}
    fake = FakeQemu(socket_dir / "vm.qmp", profile=QEMU_7_2)
    async with RunningDaemon.start(socket_dir, policy) as daemon, fake.running():
        await daemon.wait_armed("vm")
        fake.cut_before(command, times=None)
        fake.panic()
        await daemon.wait_incident("vm", state="preserved")
        assert 2 <= fake.commands.count(command) <= 3


REVERSIBLE = [QEMU_1_7, QEMU_2_0, QEMU_2_5, QEMU_2_6, QEMU_2_8]
"""Those that resume a panicked guest, and that can't be told not to stop it."""


@pytest.mark.parametrize("profile", REVERSIBLE, ids=version)
async def test_ignored_guest_is_let_run_each_time_it_panics(
    socket_dir: Path, profile: Profile
) -> None:
    policy = {
        "on_crash": "coredump-ignore",
        "fallback": "destroy",
        "coredump": {"min_free": "1MiB"},
    }
    fake = FakeQemu(socket_dir / "vm.qmp", profile=profile, shutdown_action="pause")
    async with RunningDaemon.start(socket_dir, policy) as daemon, fake.running():
        await daemon.wait_armed("vm")
        began = time.monotonic()
        for panics in range(1, 6):
            fake.panic()
            await fake.wait_command("cont", count=panics)
        took = time.monotonic() - began
        await daemon.wait_log("decided", action="ignore")
        incident = await daemon.wait_incident("vm", state="running-on")
        assert incident.decisions == [("coredump-ignore", "on-crash"), ("ignore", "on-crash")]
        assert fake.changing_commands == ["getfd", "dump-guest-memory", *["cont"] * 5]
        assert fake.machine.state == "running"
        assert incident.steps.count(("Cont", "done")) <= 3 + took, "it is noted once a second"


@pytest.mark.parametrize("before_reply", [False, True])
@pytest.mark.parametrize(("then", "state"), [("preserve", "preserved"), ("ignore", "running-on")])
async def test_ignored_guest_that_panics_at_once_is_let_run_within_the_flood_limit(
    socket_dir: Path, before_reply: bool, then: str, state: str
) -> None:
    policy = {"on_crash": "ignore", "flood": {"max": 20, "window": "1h", "then": then}}
    fake = FakeQemu(socket_dir / "vm.qmp", profile=QEMU_2_0)
    async with RunningDaemon.start(socket_dir, policy) as daemon, fake.running():
        await daemon.wait_armed("vm")
        fake.panic_when_resumed(40, before_reply=before_reply)
        fake.panic()
        limit = 21 if then == "preserve" else 41
        await fake.wait_command("cont", count=limit)
        if then == "preserve":
            incident = await daemon.wait_incident("vm", state=state)
            assert incident.decisions[-1] == ("preserve", "flood")
            assert fake.machine.state == "guest-panicked"
        else:
            await daemon.wait_incident("vm", state=state)
            assert fake.machine.state == "running"
        assert fake.changing_commands == ["cont"] * limit, "one for each stop"
        if then == "preserve":  # the last one was too many
            assert await daemon.metric("panicd_domain_panics_total", domain="vm") == limit + 1


async def test_held_guest_is_left_stopped_though_it_panics_too_often(socket_dir: Path) -> None:
    policy = {"on_crash": "ignore", "flood": {"max": 1, "window": "1h"}}
    fake = FakeQemu(socket_dir / "vm.qmp", profile=QEMU_2_0)
    async with RunningDaemon.start(socket_dir, policy) as daemon, fake.running():
        await daemon.wait_armed("vm")
        for panics in (1, 2):
            fake.panic()
            await fake.wait_command("cont", count=panics)
        await daemon.wait_incident("vm", state="running-on")
        await daemon.call("hold", domain="vm", why="looking at it")
        fake.panic()
        incident = await daemon.wait_incident("vm", state="preserved")
        assert incident.decisions == [("ignore", "on-crash"), ("preserve", "held")]
        assert fake.changing_commands == ["cont", "cont"]


@pytest.mark.real
async def test_ignored_guest_of_a_real_qemu_is_let_run_each_time_it_is_stopped(
    socket_dir: Path,
) -> None:
    policy = {"on_crash": "ignore", "fallback": "destroy"}
    async with (
        RunningDaemon.start(socket_dir, policy) as daemon,
        RealQemu.start(socket_dir, guest=Guest.PANIC_ON_KEY) as vm,
    ):
        await daemon.wait_armed("vm")
        # So its panics stop it, as they do where no set-action keeps them from it.
        await vm.witness.execute("set-action", {"panic": "pause"})
        for _ in range(5):
            mark = vm.witness.mark()
            await vm.press_key()
            await vm.wait_event("RESUME", since=mark)
            assert await vm.status() == "running"
        incident = await daemon.wait_incident("vm", state="running-on")
        assert incident.decisions == [("ignore", "on-crash")]


async def test_held_guest_is_not_let_run_again_until_the_hold_ends(socket_dir: Path) -> None:
    fake = FakeQemu(socket_dir / "vm.qmp", profile=QEMU_2_0)
    async with RunningDaemon.start(socket_dir, {"on_crash": "ignore"}) as daemon, fake.running():
        await daemon.wait_armed("vm")
        fake.panic()
        await daemon.wait_log("incident stays open", state="running-on")
        await daemon.call("hold", domain="vm", why="looking at it")
        fake.panic()
        incident = await daemon.wait_incident("vm", state="preserved")
        assert incident.decisions[-1] == ("preserve", "held")
        await daemon.call("unhold", domain="vm", why="done")
        await fake.wait_command("cont", count=2)
        assert fake.changing_commands == ["cont", "cont"]


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


async def test_unrequested_is_told_from_on_crash(socket_dir: Path) -> None:
    policy = {"on_crash": "restart", "unrequested": "ignore"}
    fake = FakeQemu(socket_dir / "vm.qmp", profile=QEMU_1_5, devices=())
    async with RunningDaemon.start(socket_dir, policy) as daemon, fake.running():
        await daemon.wait_armed("vm")
        explained = await daemon.call("explain", domain="vm")
        exposures = await daemon.exposures("vm")
        fake.panic()
        incident = await daemon.wait_incident("vm", state="preserved")
        await daemon.wait_kept(incident)
        shown = await daemon.call("incident", incident=incident.id)
        (logged,) = daemon.logged("decided")
    for told in (explained["plan"], shown["decisions"][0], logged):
        assert (told["on_crash"], told["unrequested"]) == ("restart", "ignore")
    assert "another unrequested than ignore" in exposures["irreversible"]
    assert "does not tell the guest" in exposures["firmware"]


async def test_device_that_was_neutralised_on_purpose_is_no_exposure(socket_dir: Path) -> None:
    fake = FakeQemu(socket_dir / "vm.qmp", profile=QEMU_1_5, devices=(), builtin_port=0)
    async with RunningDaemon.start(socket_dir, {"on_crash": "destroy"}) as daemon, fake.running():
        await daemon.wait_armed("vm")
        assert (await daemon.domain("vm"))["panic_device"] == "neutralised"
        assert await daemon.exposures("vm") == {}
        fake.panic()  # a false one: its guest wrote 1 to the DMA controller's port
        incident = await daemon.wait_incident("vm", state="preserved")
        assert incident.decisions == [("preserve", "unrequested-device")]
