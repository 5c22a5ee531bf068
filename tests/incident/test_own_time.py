"""A guest that handles its panic itself: its grace, its kdump, and what comes of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from panicd.demo.guests import PVPANIC_PORT, Guest
from tests.parts.daemon import DaemonInside, RunningDaemon
from tests.parts.fake import FakeQemu
from tests.parts.patience import patiently
from tests.parts.profile import QEMU_1_6, QEMU_2_5, QEMU_2_8, QEMU_10_0, Profile, RunState
from tests.parts.qemu import RealQemu

LONG, SHORT = "1h", "200ms"


@asynccontextmanager
async def connected(
    directory: Path, fake: FakeQemu | None = None, **policy: Any
) -> AsyncIterator[tuple[DaemonInside, FakeQemu]]:
    """A daemon, and one VM that is armed; its evidence is of no interest here."""
    vm = fake or FakeQemu(directory / "vm.qmp")
    settings = {"on_crash": "restart", "evidence": {"budget": "0s"}, **policy}
    async with DaemonInside.start(directory, settings) as daemon, vm.running():
        await daemon.wait_armed("vm")
        yield daemon, vm


async def watched(daemon: DaemonInside | RunningDaemon) -> None:
    """Wait until a guest is left to itself."""
    await daemon.wait_log("guest is left to itself")


async def test_guest_that_resets_itself_in_its_grace_is_left_alone(socket_dir: Path) -> None:
    async with connected(socket_dir, grace=LONG) as (daemon, vm):
        vm.panic()
        await watched(daemon)
        assert (await daemon.domain("vm"))["incident_state"] == "watched"
        assert vm.machine.panic_action == "none"  # a second notifier's event stops it no more
        vm.guest_reset()
        incident = await daemon.wait_incident("vm", ending="guest-reset")
        assert incident.decisions == [("grace", "grace")]
        await vm.wait_command("set-action", count=3)
        assert vm.changing_commands == ["set-action", "set-action", "cont", "set-action"]
        assert vm.machine.panic_action == "pause"  # the next panic is stopped again


async def test_policy_applies_when_the_grace_is_over(socket_dir: Path) -> None:
    async with connected(socket_dir, grace=SHORT) as (daemon, vm):
        vm.panic()
        incident = await daemon.wait_incident("vm", ending="restarted")
        assert incident.decisions == [("grace", "grace"), ("restart", "grace-over")]
        again = ["set-action", "stop", "system_reset", "cont"]
        assert vm.changing_commands == ["set-action", "set-action", "cont", *again]


async def test_guest_that_panics_again_in_its_grace_is_acted_on(socket_dir: Path) -> None:
    vm = FakeQemu(socket_dir / "vm.qmp", profile=QEMU_2_8, shutdown_action="pause")
    async with connected(socket_dir, vm, grace=LONG) as (daemon, _):
        vm.panic()
        await watched(daemon)
        vm.panic()
        incident = await daemon.wait_incident("vm", ending="restarted")
        assert incident.decisions == [("grace", "grace"), ("restart", "grace-over")]
        assert vm.changing_commands == ["cont", "system_reset", "cont"]


async def test_second_notifier_s_event_does_not_end_a_grace(socket_dir: Path) -> None:
    async with connected(socket_dir, grace=LONG) as (daemon, vm):
        vm.panic()
        await watched(daemon)
        vm.panic()
        await daemon.wait_log("guest panicked again", count=1)
        vm.guest_reset()
        await daemon.wait_incident("vm", ending="guest-reset")
        assert vm.changing_commands[:3] == ["set-action", "set-action", "cont"]


async def test_guest_that_a_panic_does_not_stop_is_not_touched(socket_dir: Path) -> None:
    async with connected(socket_dir, grace=LONG) as (daemon, vm):
        vm.machine.panic_action = "none"  # somebody else's doing
        vm.panic()
        await watched(daemon)
        vm.guest_reset()
        await daemon.wait_incident("vm", ending="guest-reset")
        assert "cont" not in vm.commands


@pytest.mark.parametrize(
    ("profile", "decisions"),
    [
        (QEMU_1_6, [("restart", "no-grace")]),
        (QEMU_2_5, [("grace", "grace"), ("restart", "grace-over")]),
    ],
    ids=["1.6", "2.5"],
)
async def test_grace_needs_a_qemu_that_resumes(
    socket_dir: Path, profile: Profile, decisions: list[tuple[str, str]]
) -> None:
    vm = FakeQemu(socket_dir / "vm.qmp", profile=profile)
    async with connected(socket_dir, vm, grace=SHORT) as (daemon, _):
        vm.panic()
        incident = await daemon.wait_incident("vm", ending="restarted")
        assert incident.decisions == decisions


async def test_qemu_that_refuses_after_all_gives_no_grace(socket_dir: Path) -> None:
    async with connected(socket_dir, grace=LONG) as (daemon, vm):
        vm.refuse("cont", "Resetting the Virtual Machine is required")
        vm.panic()
        incident = await daemon.wait_incident("vm", ending="restarted")
        assert incident.decisions == [("grace", "grace"), ("restart", "no-grace")]


async def test_guest_that_shuts_itself_down_in_its_grace(socket_dir: Path) -> None:
    async with connected(socket_dir, grace=LONG) as (daemon, vm):
        vm.panic()
        await watched(daemon)
        vm.guest_shutdown()
        await daemon.wait_incident("vm", ending="guest-shutdown")


async def test_operator_need_not_wait(socket_dir: Path) -> None:
    async with connected(socket_dir, grace=LONG) as (daemon, vm):
        vm.panic()
        await watched(daemon)
        done = await daemon.call("act", domain="vm", action="restart", why="now")
        assert (done["done"], done["ending"]) == (True, "restarted")
        incident = await daemon.wait_incident("vm", ending="restarted")
        assert incident.decisions == [("grace", "grace"), ("restart", "operator")]


async def test_explain_says_what_follows_the_grace(socket_dir: Path) -> None:
    async with connected(socket_dir, grace=LONG) as (daemon, _):
        explained = await daemon.call("explain", domain="vm")
        assert [step["step"] for step in explained["plan"]["steps"]][-2:] == [
            "Cont",
            "AwaitGuestReset",
        ]
        assert explained["then"]["action"] == "restart"
        assert explained["then"]["reason"] == "grace-over"


# -- panicd is away meanwhile


@asynccontextmanager
async def killed_in_a_grace(
    directory: Path, grace: str
) -> AsyncIterator[tuple[RunningDaemon, FakeQemu]]:
    """A daemon that was killed while a guest was left to itself, and the VM."""
    settings = {"on_crash": "restart", "evidence": {"budget": "0s"}, "grace": grace}
    vm = FakeQemu(directory / "vm.qmp")
    async with RunningDaemon.start(directory, settings) as daemon, vm.running():
        await daemon.wait_armed("vm")
        vm.panic()
        await watched(daemon)
        while daemon.journal()[0].watched_until is None:  # it is logged before it is kept
            await trio.lowlevel.checkpoint()
        await daemon.kill()
        yield daemon, vm


async def test_grace_goes_on_for_the_time_that_is_left_after_a_crash(socket_dir: Path) -> None:
    async with killed_in_a_grace(socket_dir, LONG) as (daemon, vm):
        (before,) = daemon.journal()
        mark = daemon.mark()
        await daemon.start_again()
        await daemon.wait_armed("vm", since=mark)
        assert vm.machine.panic_action == "none"  # armed anew, and its grace goes on
        (after,) = daemon.journal()
        assert before.watched_until is not None
        assert after.watched_until == before.watched_until
        vm.guest_reset()
        await daemon.wait_log("incident closed", ending="guest-reset", since=mark)
        assert vm.commands.count("cont") == 1


async def test_what_runs_is_left_alone_where_its_reset_may_have_gone_unseen(
    socket_dir: Path,
) -> None:
    async with killed_in_a_grace(socket_dir, patiently(1)) as (daemon, vm):
        vm.guest_reset()  # unseen: it is healthy by now
        mark = daemon.mark()
        await daemon.start_again()
        await daemon.wait_log("incident stays open", state="failed", since=mark)
        assert "system_reset" not in vm.commands
        assert "stop" not in vm.commands

        vm.panic()  # a new one, which was seen from its beginning
        incident = await daemon.wait_incident("vm", ending="restarted", since=mark)
        assert incident.decisions == [("grace", "grace"), ("restart", "grace-over")]


async def test_guest_found_panicked_again_is_acted_on_at_once(socket_dir: Path) -> None:
    async with killed_in_a_grace(socket_dir, LONG) as (daemon, vm):
        vm.machine.state = RunState.GUEST_PANICKED
        await daemon.start_again()
        incident = await daemon.wait_incident("vm", ending="restarted")
        assert incident.decisions[-1] == ("restart", "grace-over")


# -- kdump


async def test_kdump_is_followed_to_its_reset(socket_dir: Path) -> None:
    async with connected(socket_dir, on_crash="destroy") as (daemon, vm):
        vm.crashload()
        await watched(daemon)
        vm.crashload()
        vm.guest_reset()
        incident = await daemon.wait_incident("vm", ending="guest-reset")
        assert incident.decisions == [("grace", "kdump")]
        assert vm.changing_commands == ["set-action"]  # nothing but arming
        assert await daemon.metric("panicd_panics_total", source="kdump") == 1


async def test_stuck_kdump_is_acted_on(socket_dir: Path) -> None:
    async with connected(socket_dir, kdump_timeout=SHORT) as (daemon, vm):
        vm.crashload()
        incident = await daemon.wait_incident("vm", ending="restarted")
        assert incident.decisions == [("grace", "kdump"), ("restart", "kdump-stuck")]
        assert vm.changing_commands == ["set-action", "stop", "system_reset", "cont"]


async def test_kdump_kernel_that_panics_is_acted_on(socket_dir: Path) -> None:
    async with connected(socket_dir) as (daemon, vm):
        vm.crashload()
        await watched(daemon)
        vm.panic()
        incident = await daemon.wait_incident("vm", ending="restarted")
        assert incident.decisions == [("grace", "kdump"), ("restart", "kdump-stuck")]
        assert vm.changing_commands == ["set-action", "system_reset", "cont"]


async def test_guest_that_says_it_shuts_down_is_no_panic(socket_dir: Path) -> None:
    vm = FakeQemu(socket_dir / "vm.qmp", profile=QEMU_10_0)
    async with connected(socket_dir, vm) as (daemon, _):
        vm.pvshutdown()
        await daemon.wait_log("seen", what="guest shuts itself down, and says so (pvpanic)")
        assert daemon.incidents() == []


# -- a real QEMU


@pytest.mark.real
async def test_grace_of_a_real_guest(socket_dir: Path) -> None:
    settings = {"on_crash": "destroy", "grace": LONG}
    async with (
        RunningDaemon.start(socket_dir, settings) as daemon,
        RealQemu.start(socket_dir, guest=Guest.PANIC_ON_KEY) as vm,
    ):
        await daemon.wait_armed("vm")
        await vm.press_key()
        await watched(daemon)
        await vm.wait_counting()  # it was let run
        await vm.guest_reset()
        incident = await daemon.wait_incident("vm", ending="guest-reset")
        assert incident.decisions == [("grace", "grace")]
        await vm.wait_counting()
        assert vm.returncode is None


@pytest.mark.real
@pytest.mark.parametrize(
    ("guest", "ending", "decisions"),
    [
        (Guest.CRASHLOAD_THEN_RESET, "guest-reset", [("grace", "kdump")]),
        (
            Guest.CRASHLOAD_THEN_HANG,
            "destroyed",
            [("grace", "kdump"), ("destroy", "kdump-stuck")],
        ),
    ],
)
async def test_kdump_of_a_real_guest(
    socket_dir: Path, guest: Guest, ending: str, decisions: list[tuple[str, str]]
) -> None:
    settings = {"on_crash": "destroy", "kdump_timeout": patiently(2)}
    async with (
        RunningDaemon.start(socket_dir, settings) as daemon,
        RealQemu.start(socket_dir, guest=guest, paused=True) as vm,
    ):
        await daemon.wait_armed("vm")
        await vm.start_guest()
        incident = await daemon.wait_incident("vm", ending=ending)
        assert incident.decisions == decisions


@pytest.mark.real
async def test_pvshutdown_of_a_real_guest(socket_dir: Path) -> None:
    async with (
        RunningDaemon.start(socket_dir, {"on_crash": "destroy"}) as daemon,
        RealQemu.start(socket_dir) as vm,
    ):
        if tuple(map(int, vm.version.split("."))) < (9, 1):
            pytest.skip("GUEST_PVSHUTDOWN came with QEMU 9.1")
        await daemon.wait_armed("vm")
        await vm.witness.send(
            "human-monitor-command", {"command-line": f"o /b {PVPANIC_PORT:#x} 4"}
        )
        await daemon.wait_log("seen", what="guest shuts itself down, and says so (pvpanic)")
        await vm.wait_exit()
        assert daemon.incidents() == []
