"""What happened while the daemon was away, and what it makes of that."""

from __future__ import annotations

from pathlib import Path

import pytest

from panicd.demo.guests import Guest
from tests.parts.daemon import LoggedIncident, RunningDaemon
from tests.parts.fake import FakeQemu
from tests.parts.profile import QEMU_1_7, QEMU_2_5, QEMU_7_2, Profile, RunState
from tests.parts.qemu import RealQemu

RESTART = {"on_crash": "restart"}
PRESERVE = {"on_crash": "preserve"}
PAUSES = ("-action", "panic=pause")
OLD = [pytest.param(QEMU_1_7, id="1.7"), pytest.param(QEMU_2_5, id="2.5")]


async def panicked_and_killed(
    daemon: RunningDaemon, vm: RealQemu, *, state: str = "", ending: str = ""
) -> LoggedIncident:
    """Let a guest panic, and kill the daemon when all of what came of it is on the disk."""
    await daemon.wait_armed("vm")
    await vm.panic()
    incident = await daemon.wait_incident("vm", state=state, ending=ending)
    await daemon.wait_kept(incident)
    await daemon.kill()
    return incident


async def panics_anew(vm: RealQemu) -> None:
    """Somebody resets the guest and lets it run, and it panics again."""
    await vm.witness.execute("system_reset")
    await vm.witness.execute("cont")
    await vm.panic()
    await vm.wait_status("guest-panicked")


@pytest.mark.real
async def test_panic_after_an_operators_reset_is_a_panic_of_its_own(socket_dir: Path) -> None:
    async with (
        RunningDaemon.start(socket_dir, RESTART) as daemon,
        RealQemu.start(socket_dir, guest=Guest.COUNT) as vm,
    ):
        first = await panicked_and_killed(daemon, vm, ending="restarted")
        await panics_anew(vm)
        await daemon.start_again()

        second = await daemon.wait_incident("vm", ending="restarted", since=daemon.began)
        assert second.id != first.id
        assert second.source == "reconciliation"
        await vm.wait_counting()
        assert await daemon.metric("panicd_domain_panics_total", domain="vm") == 2
        assert await daemon.metric("panicd_domain_restarts_total", domain="vm") == 2


@pytest.mark.real
async def test_second_panic_of_a_preserved_guest_cannot_be_told_from_the_first(
    socket_dir: Path,
) -> None:
    async with (
        RunningDaemon.start(socket_dir, PRESERVE) as daemon,
        RealQemu.start(socket_dir, guest=Guest.COUNT, proxied=True) as vm,
    ):
        incident = await panicked_and_killed(daemon, vm, state="preserved")
        await panics_anew(vm)
        await daemon.start_again()

        await daemon.wait_armed("vm", since=daemon.began)
        assert (await daemon.domain("vm"))["incident"] == incident.id
        assert await daemon.metric("panicd_domain_panics_total", domain="vm") == 1
        assert vm.proxy.acting_commands == []


@pytest.mark.real
async def test_vm_made_anew_that_has_panicked_too_has_an_incident_of_its_own(
    socket_dir: Path,
) -> None:
    uuid = "b7a0c3c2-6f5e-4a43-9a8b-6f1de1c0a003"
    async with RunningDaemon.start(socket_dir, PRESERVE) as daemon:
        async with RealQemu.start(socket_dir, guest=Guest.COUNT, uuid=uuid) as vm:
            old = await panicked_and_killed(daemon, vm, state="preserved")
        (socket_dir / "vm.qmp").unlink()
        async with RealQemu.start(socket_dir, guest=Guest.COUNT, uuid=uuid, extra=PAUSES) as vm:
            await vm.panic()
            await vm.wait_status("guest-panicked")
            await daemon.start_again()
            ended = await daemon.wait_incident("vm", ending="qemu-gone")
            new = await daemon.wait_incident("vm", state="preserved", since=daemon.began)
            assert (ended.id, new.source) == (old.id, "reconciliation")
            assert new.id != old.id
            assert await daemon.metric("panicd_domain_panics_total", domain="vm") == 2


@pytest.mark.real
async def test_incident_of_a_qemu_that_lives_goes_to_no_other_at_its_path(socket_dir: Path) -> None:
    elsewhere = socket_dir / "elsewhere"
    elsewhere.mkdir()
    async with (
        RunningDaemon.start(socket_dir, PRESERVE) as daemon,
        RealQemu.start(socket_dir, guest=Guest.COUNT) as vm,
        RealQemu.start(elsewhere, guest=Guest.COUNT) as other,
    ):
        incident = await panicked_and_killed(daemon, vm, state="preserved")
        vm.socket.unlink()
        other.socket.rename(vm.socket)
        await daemon.start_again()
        await daemon.wait_armed("vm", since=daemon.began)
        (waits,) = (await daemon.call("status"))["waiting"]
        assert (waits["incident"], waits["incident_state"]) == (incident.id, "preserved")
        assert (await daemon.domain("vm"))["incident"] == ""


@pytest.mark.real
async def test_reset_and_resume_of_a_preserved_guest_end_its_incident(socket_dir: Path) -> None:
    async with (
        RunningDaemon.start(socket_dir, PRESERVE) as daemon,
        RealQemu.start(socket_dir, guest=Guest.COUNT) as vm,
    ):
        await panicked_and_killed(daemon, vm, state="preserved")

        await vm.witness.execute("system_reset")
        await vm.witness.execute("cont")
        await daemon.start_again()

        await daemon.wait_incident("vm", ending="foreign-resume", since=daemon.began)
        await daemon.wait_armed("vm", since=daemon.began)
        assert await vm.status() == "running"
        assert (await daemon.domain("vm"))["incident"] == ""


@pytest.mark.parametrize("profile", OLD)
async def test_reset_guest_that_still_reads_panicked_is_left_to_who_reset_it(
    socket_dir: Path, profile: Profile
) -> None:
    fake = FakeQemu(socket_dir / "vm.qmp", profile=profile)
    async with RunningDaemon.start(socket_dir, PRESERVE) as daemon, fake.running():
        await daemon.wait_armed("vm")
        fake.panic()
        incident = await daemon.wait_incident("vm", state="preserved")
        await daemon.terminate()
        await fake.foreign("system_reset")
        assert fake.machine.state is RunState.GUEST_PANICKED
        await daemon.start_again()
        await daemon.wait_armed("vm", since=daemon.began)
        assert [told.id for told in daemon.incidents()] == [incident.id]
        assert fake.acting_commands == []

        await fake.foreign("cont")
        await daemon.wait_incident("vm", ending="foreign-resume")
        assert fake.acting_commands == []


@pytest.mark.parametrize("profile", OLD)
async def test_interrupted_restart_resets_again_where_nothing_tells(
    socket_dir: Path, profile: Profile
) -> None:
    fake = FakeQemu(socket_dir / "vm.qmp", profile=profile)
    async with RunningDaemon.start(socket_dir, RESTART) as daemon, fake.running():
        await daemon.wait_armed("vm")
        before_cont = fake.hold("cont")
        fake.panic()
        await before_cont.reached.wait()
        await daemon.kill()
        before_cont.cut()
        await daemon.start_again()

        await daemon.wait_incident("vm", ending="restarted")
        assert fake.machine.state is RunState.RUNNING
        # The first cont was received and lost. A reset of a guest that has not run does no harm; a
        # cont alone would let a panicked guest run, if somebody else had been at it meanwhile.
        assert fake.acting_commands == ["system_reset", "cont", "system_reset", "cont"]
        assert await daemon.metric("panicd_domain_restarts_total", domain="vm") == 1


@pytest.mark.parametrize("profile", [QEMU_7_2, QEMU_2_5], ids=["7.2", "2.5"])
async def test_guest_that_arrived_panicked_by_migration_gets_its_policy(
    socket_dir: Path, profile: Profile
) -> None:
    fake = FakeQemu(socket_dir / "vm.qmp", profile=profile, state=RunState.GUEST_PANICKED)
    async with RunningDaemon.start(socket_dir, RESTART) as daemon, fake.running():
        incident = await daemon.wait_incident("vm", ending="restarted")
        assert incident.source == "reconciliation"
        assert fake.acting_commands == ["system_reset", "cont"]
        found = await daemon.metric("panicd_panics_total", source="reconciliation")
        assert found == 1


@pytest.mark.real
@pytest.mark.parametrize("connected", [True, False], ids=["awaited", "found"])
async def test_guest_that_migration_brings_panicked_gets_its_policy(
    socket_dir: Path, connected: bool
) -> None:
    elsewhere = socket_dir / "elsewhere"
    elsewhere.mkdir()
    way = f"unix:{elsewhere / 'migration'}"
    incoming = (*PAUSES, "-incoming", way)
    async with (
        RealQemu.start(elsewhere, guest=Guest.COUNT, extra=PAUSES) as source,
        RunningDaemon.start(socket_dir, RESTART) as daemon,
        RealQemu.start(socket_dir, guest=Guest.COUNT, paused=True, extra=incoming) as vm,
    ):
        if connected:
            await daemon.wait_armed("vm")
        else:
            await daemon.kill()
        await source.panic()
        await source.wait_status("guest-panicked")
        await source.witness.execute("migrate", {"uri": way})
        while (await source.witness.execute("query-migrate")).get("status") != "completed":
            pass  # each look is a round trip to QEMU
        if not connected:
            await daemon.start_again()
        incident = await daemon.wait_incident("vm", ending="restarted")
        assert incident.source == "reconciliation"
        await vm.wait_counting()
        await source.wait_status("postmigrate")


@pytest.mark.real
async def test_incident_of_a_qemu_that_is_no_more_is_closed_at_the_start(socket_dir: Path) -> None:
    async with RunningDaemon.start(socket_dir, PRESERVE) as daemon:
        async with RealQemu.start(socket_dir, guest=Guest.COUNT) as vm:
            incident = await panicked_and_killed(daemon, vm, state="preserved")
            vm.kill()
        await daemon.start_again()
        ended = await daemon.wait_incident("vm", ending="qemu-gone")
        assert ended.id == incident.id
        assert (await daemon.call("status"))["waiting"] == []


@pytest.mark.real
async def test_incident_is_closed_when_its_qemu_ends_without_ever_coming_back(
    socket_dir: Path,
) -> None:
    async with (
        RunningDaemon.start(socket_dir, PRESERVE) as daemon,
        RealQemu.start(socket_dir, guest=Guest.COUNT) as vm,
    ):
        await panicked_and_killed(daemon, vm, state="preserved")
        vm.socket.unlink()  # nobody can be connected to it any more
        await daemon.start_again()
        (waiting,) = (await daemon.call("status"))["waiting"]
        assert waiting["incident_state"] == "preserved"
        vm.kill()
        await daemon.wait_incident("vm", ending="qemu-gone")


@pytest.mark.real
async def test_restart_budget_outlives_the_daemon(socket_dir: Path) -> None:
    policy = {**RESTART, "restart": {"max": 2}}
    async with (
        RunningDaemon.start(socket_dir, policy, time_limit=40) as daemon,
        RealQemu.start(socket_dir, guest=Guest.COUNT, proxied=True) as vm,
    ):
        for left in (1, 0):
            await daemon.wait_armed("vm", since=daemon.began)
            await vm.panic()
            ended = await daemon.wait_incident("vm", ending="restarted", since=daemon.began)
            assert (await daemon.domain("vm"))["restarts_left"] == left
            await daemon.wait_kept(ended)
            await daemon.kill()
            await daemon.start_again()
        await daemon.wait_armed("vm", since=daemon.began)
        await vm.panic()
        incident = await daemon.wait_incident("vm", state="preserved")
        assert incident.decisions == [("preserve", "crash-loop")]
        assert await vm.status() == "guest-panicked"
        assert vm.proxy.acting_commands == ["system_reset", "cont"] * 2


@pytest.mark.real
async def test_incident_of_a_domain_that_is_configured_no_longer_waits_for_its_end(
    socket_dir: Path,
) -> None:
    async with (
        RunningDaemon.start(socket_dir, PRESERVE) as daemon,
        RealQemu.start(socket_dir, guest=Guest.COUNT) as vm,
    ):
        await daemon.wait_armed("vm")
        await vm.panic()
        incident = await daemon.wait_incident("vm", state="preserved")
        await daemon.wait_kept(incident)
        await daemon.terminate()
        daemon.write_config(monitors=[{"glob": str(socket_dir / "*.other")}])
        await daemon.start_again()
        status = await daemon.call("status")
        assert status["domains"] == []
        assert [waiting["incident"] for waiting in status["waiting"]] == [incident.id]

        vm.kill()
        ended = await daemon.wait_incident("vm", ending="qemu-gone")
        assert ended.id == incident.id
        assert (await daemon.call("status"))["waiting"] == []
