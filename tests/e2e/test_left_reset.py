"""A panicked guest that somebody else resets, and does not let run: told as it is, and not lost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from panicd.demo.guests import Guest
from panicd.service.control_client import RefusedError
from tests.e2e.preserved import preserved
from tests.parts.daemon import DaemonInside, LoggedIncident, RunningDaemon
from tests.parts.fake import FakeQemu
from tests.parts.profile import QEMU_2_5
from tests.parts.qemu import RealQemu

RESET = "panicd_foreign_actions_total"


@asynccontextmanager
async def left_reset(
    directory: Path, **policy: object
) -> AsyncIterator[tuple[DaemonInside, RealQemu, LoggedIncident]]:
    """A guest that panicked, was preserved, and that somebody else has reset and left."""
    async with preserved(directory, **policy) as (daemon, vm, _):
        await vm.witness.execute("system_reset")
        incident = await daemon.wait_incident("vm", state="reset")
        yield daemon, vm, incident


@pytest.mark.real
async def test_a_guest_that_is_reset_and_left_stays_an_open_incident(socket_dir: Path) -> None:
    async with left_reset(socket_dir) as (daemon, vm, incident):
        status = await daemon.domain("vm")
        assert status["run_state"] == "prelaunch"
        assert (status["incident"], status["incident_state"]) == (incident.id, "reset")
        assert await daemon.metric("panicd_domain_panicked", domain="vm") == 1
        assert await daemon.metric("panicd_guests_left_reset") == 1
        assert await daemon.metric(RESET, action="reset") == 1

        await vm.witness.execute("cont")
        ended = await daemon.wait_incident("vm", ending="foreign-reset")
        assert ended.id == incident.id
        assert await daemon.metric("panicd_guests_left_reset") == 0
        assert await daemon.metric(RESET, action="reset") == 1
        assert await daemon.metric(RESET, action="resume") == 0
        await vm.wait_counting()
        assert vm.proxy.acting_commands == []


@pytest.mark.real
async def test_enforce_does_not_stop_a_guest_that_was_reset(socket_dir: Path) -> None:
    async with left_reset(socket_dir, enforce=True) as (daemon, vm, _):
        await vm.witness.execute("cont")
        await daemon.wait_incident("vm", ending="foreign-reset")
        await vm.wait_counting()
        assert vm.proxy.acting_commands == []


@pytest.mark.real
@pytest.mark.parametrize(
    ("command", "arguments", "ending", "commands"),
    [
        ("release", {}, "released", ["cont"]),
        ("act", {"action": "restart"}, "restarted", ["system_reset", "cont"]),
        ("act", {"action": "destroy"}, "destroyed", ["quit"]),
    ],
)
async def test_an_operator_may_end_it(
    socket_dir: Path, command: str, arguments: dict[str, Any], ending: str, commands: list[str]
) -> None:
    async with left_reset(socket_dir) as (daemon, vm, incident):
        await daemon.call(command, domain="vm", why="seen", **arguments)
        ended = await daemon.wait_incident("vm", ending=ending)
        assert ended.id == incident.id
        assert vm.proxy.acting_commands == commands
        assert await daemon.metric("panicd_guests_left_reset") == 0


@pytest.mark.real
@pytest.mark.parametrize("action", ["preserve", "ignore", "coredump-restart"])
async def test_nothing_is_left_to_be_kept(socket_dir: Path, action: str) -> None:
    async with left_reset(socket_dir) as (daemon, vm, _):
        with pytest.raises(RefusedError, match="nothing is left of its panic"):
            await daemon.call("act", domain="vm", action=action, why="seen")
        assert (await daemon.domain("vm"))["incident_state"] == "reset"
        assert vm.proxy.acting_commands == []


@pytest.mark.real
async def test_a_reset_during_a_dump_is_told_so_too(socket_dir: Path) -> None:
    policy = {"on_crash": "coredump-restart", "coredump": {"min_free": "1MiB"}}
    async with (
        DaemonInside.start(socket_dir, policy) as daemon,
        RealQemu.start(socket_dir, guest=Guest.COUNT, proxied=True) as vm,
    ):
        await daemon.wait_armed("vm")
        held = vm.proxy.hold("dump-guest-memory")
        await vm.panic()
        await held.reached.wait()
        await vm.witness.execute("system_reset")
        held.release()
        await daemon.wait_incident("vm", state="reset")
        assert (await daemon.domain("vm"))["run_state"] == "prelaunch"
        assert "system_reset" not in vm.proxy.acting_commands


@pytest.mark.real
async def test_it_is_known_over_a_restart_of_panicd(socket_dir: Path) -> None:
    async with (
        RunningDaemon.start(socket_dir, {"on_crash": "preserve"}) as daemon,
        RealQemu.start(socket_dir, guest=Guest.COUNT) as vm,
    ):
        await daemon.wait_armed("vm")
        await vm.panic()
        first = await daemon.wait_incident("vm", state="preserved")
        await daemon.wait_kept(first)
        await daemon.terminate()
        await vm.witness.execute("system_reset")  # while nobody looks
        for _ in range(2):
            await daemon.start_again()
            await daemon.wait_armed("vm", since=daemon.began)
            status = await daemon.domain("vm")
            assert (status["incident"], status["incident_state"]) == (first.id, "reset")
            assert status["run_state"] == "prelaunch"
            await daemon.terminate()
        await vm.witness.execute("cont")
        await daemon.start_again()
        await daemon.wait_incident("vm", ending="foreign-reset", since=daemon.began)
        assert await daemon.metric(RESET, action="reset") == 1


@pytest.mark.parametrize("away", [False, True], ids=["seen", "found"])
async def test_a_guest_in_its_own_time_that_is_reset_and_left_is_watched_no_more(
    socket_dir: Path, away: bool
) -> None:
    fake = FakeQemu(socket_dir / "vm.qmp")
    policy = {"on_crash": "destroy", "grace": "10m"}
    async with RunningDaemon.start(socket_dir, policy) as daemon, fake.running():
        await daemon.wait_armed("vm")
        fake.panic()
        await daemon.wait_log("guest is left to itself")
        if away:
            await daemon.terminate()
        await fake.foreign("stop")
        await fake.foreign("system_reset")
        if away:
            await daemon.start_again()
        await daemon.wait_incident("vm", state="reset")
        assert (await daemon.domain("vm"))["incident_state"] == "reset"
        await fake.foreign("cont")
        await daemon.wait_incident("vm", ending="foreign-reset")
        assert fake.acting_commands == ["cont"]


async def test_a_qemu_that_still_reads_panicked_then_is_no_exception(socket_dir: Path) -> None:
    fake = FakeQemu(socket_dir / "vm.qmp", profile=QEMU_2_5)
    async with DaemonInside.start(socket_dir, {"on_crash": "preserve"}) as daemon, fake.running():
        await daemon.wait_armed("vm")
        fake.panic()
        await daemon.wait_incident("vm", state="preserved")
        await fake.foreign("system_reset")
        await daemon.wait_incident("vm", state="reset")
        await fake.foreign("cont")
        await daemon.wait_incident("vm", ending="foreign-reset")
        fake.panic()
        await daemon.wait_incident("vm", state="preserved")
        assert len(daemon.incidents()) == 2
