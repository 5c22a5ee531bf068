"""What the daemon makes of what happened while it was away, and of a journal that fails it."""

from __future__ import annotations

import contextlib
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from panicd.demo.guests import Guest
from panicd.host.control import RefusedError
from tests.parts.daemon import RunningDaemon
from tests.parts.fake import FakeQemu
from tests.parts.profile import QEMU_1_7, QEMU_2_5, QEMU_7_2, Profile, RunState
from tests.parts.qemu import RealQemu

RESTART = {"on_crash": "restart", "evidence": {"budget": "0s"}}
PRESERVE = {"on_crash": "preserve", "evidence": {"budget": "0s"}}
OLD = [pytest.param(QEMU_1_7, id="1.7"), pytest.param(QEMU_2_5, id="2.5")]


def acted(fake: FakeQemu) -> list[str]:
    """The commands that a QEMU received and that do more than ask or arm."""
    return [name for name in fake.changing_commands if name != "set-action"]


# -- what happened while it was away


@pytest.mark.real
async def test_panic_after_an_operators_reset_is_a_panic_of_its_own(socket_dir: Path) -> None:
    async with (
        RunningDaemon.start(socket_dir, RESTART) as daemon,
        RealQemu.start(socket_dir, guest=Guest.COUNT) as vm,
    ):
        await daemon.wait_armed("vm")
        await vm.panic()
        first = await daemon.wait_incident("vm", ending="restarted")
        await daemon.kill()

        await vm.witness.execute("system_reset")
        await vm.witness.execute("cont")
        await vm.panic()
        await vm.wait_status("guest-panicked")
        await daemon.start_again()

        second = await daemon.wait_incident("vm", ending="restarted", since=daemon.began)
        assert second.id != first.id
        assert second.source == "reconciliation"
        await vm.wait_counting()
        assert await daemon.metric("panicd_domain_panics_total", domain="vm") == 2
        assert await daemon.metric("panicd_domain_restarts_total", domain="vm") == 2


@pytest.mark.real
@pytest.mark.parametrize("resumed", [False, True], ids=["reset", "reset-and-resumed"])
async def test_reset_of_a_preserved_guest_ends_its_incident(
    socket_dir: Path, resumed: bool
) -> None:
    async with (
        RunningDaemon.start(socket_dir, PRESERVE) as daemon,
        RealQemu.start(socket_dir, guest=Guest.COUNT) as vm,
    ):
        await daemon.wait_armed("vm")
        await vm.panic()
        await daemon.wait_incident("vm", state="preserved")
        await daemon.kill()

        await vm.witness.execute("system_reset")
        if resumed:
            await vm.witness.execute("cont")
        await daemon.start_again()

        ending = "foreign-resume" if resumed else "foreign-reset"
        await daemon.wait_incident("vm", ending=ending, since=daemon.began)
        await daemon.wait_armed("vm", since=daemon.began)
        assert await vm.status() == ("running" if resumed else "prelaunch")
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
        assert acted(fake) == []

        await fake.foreign("cont")
        await daemon.wait_incident("vm", ending="foreign-resume")
        assert acted(fake) == []


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
        assert acted(fake) == ["system_reset", "cont", "system_reset", "cont"]
        assert await daemon.metric("panicd_domain_restarts_total", domain="vm") == 1


@pytest.mark.parametrize("profile", [QEMU_7_2, QEMU_2_5], ids=["7.2", "2.5"])
async def test_guest_that_arrived_panicked_by_migration_gets_its_policy(
    socket_dir: Path, profile: Profile
) -> None:
    fake = FakeQemu(socket_dir / "vm.qmp", profile=profile, state=RunState.GUEST_PANICKED)
    async with RunningDaemon.start(socket_dir, RESTART) as daemon, fake.running():
        incident = await daemon.wait_incident("vm", ending="restarted")
        assert incident.source == "reconciliation"
        assert acted(fake) == ["system_reset", "cont"]
        found = await daemon.metric("panicd_panics_total", source="reconciliation")
        assert found == 1


@pytest.mark.real
async def test_incident_of_a_qemu_that_is_no_more_is_closed_at_the_start(socket_dir: Path) -> None:
    async with RunningDaemon.start(socket_dir, PRESERVE) as daemon:
        async with RealQemu.start(socket_dir, guest=Guest.COUNT) as vm:
            await daemon.wait_armed("vm")
            await vm.panic()
            incident = await daemon.wait_incident("vm", state="preserved")
            await daemon.kill()
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
        await daemon.wait_armed("vm")
        await vm.panic()
        await daemon.wait_incident("vm", state="preserved")
        await daemon.kill()
        vm.socket.unlink()  # nobody can be connected to it any more
        await daemon.start_again()
        (waiting,) = (await daemon.call("status"))["waiting"]
        assert waiting["state"] == "preserved"
        vm.kill()
        await daemon.wait_incident("vm", ending="qemu-gone")


@pytest.mark.real
async def test_restart_budget_outlives_the_daemon(socket_dir: Path) -> None:
    policy = {**RESTART, "restart": {"max": 2}}
    async with (
        RunningDaemon.start(socket_dir, policy) as daemon,
        RealQemu.start(socket_dir, guest=Guest.COUNT, proxied=True) as vm,
    ):
        for left in (1, 0):
            await daemon.wait_armed("vm", since=daemon.began)
            await vm.panic()
            await daemon.wait_incident("vm", ending="restarted", since=daemon.began)
            assert (await daemon.domain("vm"))["restarts_left"] == left
            await daemon.kill()
            await daemon.start_again()
        await daemon.wait_armed("vm", since=daemon.began)
        await vm.panic()
        incident = await daemon.wait_incident("vm", state="preserved")
        assert incident.decisions == [("preserve", "crash-loop")]
        assert await vm.status() == "guest-panicked"
        commands = [name for name in vm.proxy.changing_commands if name != "set-action"]
        assert commands == ["system_reset", "cont"] * 2


# -- operators


async def test_hold_outlives_the_daemon_until_it_is_taken_back(socket_dir: Path) -> None:
    fake = FakeQemu(socket_dir / "vm.qmp")
    async with RunningDaemon.start(socket_dir, RESTART) as daemon, fake.running():
        await daemon.wait_armed("vm")
        await daemon.call("hold", domain="vm", why="looking at it")
        await daemon.kill()
        await daemon.start_again()
        await daemon.wait_armed("vm", since=daemon.began)
        assert (await daemon.domain("vm"))["held_why"] == "looking at it"
        fake.panic()
        await daemon.wait_incident("vm", state="preserved")
        await daemon.kill()
        await daemon.start_again()
        await daemon.wait_log("open incident found again", recovery="Stay")
        await daemon.wait_armed("vm", since=daemon.began)
        assert acted(fake) == []

        await daemon.call("unhold", domain="vm", why="done")
        incident = await daemon.wait_incident("vm", ending="restarted")
        (told,) = daemon.journal()
        assert [decision.reason for decision in told.decisions] == ["held", "on-crash"]
        assert told.id == incident.id
        assert acted(fake) == ["system_reset", "cont"]


async def test_hold_ends_by_itself(socket_dir: Path) -> None:
    fake = FakeQemu(socket_dir / "vm.qmp")
    async with RunningDaemon.start(socket_dir, RESTART) as daemon, fake.running():
        await daemon.wait_armed("vm")
        fake.panic_at_boot(1)  # one panic is dealt with before the hold, one finds it over
        await daemon.call("hold", domain="vm", why="a moment", **{"for": 1.0})
        fake.panic()
        await daemon.wait_incident("vm", ending="restarted", count=2)
        first, second = daemon.incidents()
        assert first.decisions == [("preserve", "held"), ("restart", "on-crash")]
        assert second.decisions == [("restart", "on-crash")]


# -- a journal that fails


@pytest.fixture
def small_disk(socket_dir: Path) -> Iterator[Path]:
    """A file system of 1 MiB; skips where none can be mounted."""
    disk = socket_dir / "small-disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "panicd-test", str(disk)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def fill(disk: Path) -> Path:
    """Write a file until the disk is full."""
    path = disk / "filler"
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return path


async def check_unwritable(daemon: RunningDaemon) -> None:
    """Check that log, status and metric say that the journal can't be written."""
    await daemon.wait_log("the journal can't be written", level="error")
    status = await daemon.call("status")
    assert status["journal_fault"]
    assert await daemon.metric("panicd_journal_healthy") == 0


async def test_nothing_is_done_while_the_disk_is_full(socket_dir: Path, small_disk: Path) -> None:
    fake = FakeQemu(socket_dir / "vm.qmp")
    async with (
        RunningDaemon.start(socket_dir, RESTART, state_directory=str(small_disk)) as daemon,
        fake.running(),
    ):
        await daemon.wait_armed("vm")
        filler = fill(small_disk)
        fake.panic()
        await check_unwritable(daemon)
        # Connected anew, it tries again, and again finds that it can't.
        await daemon.wait_log("open incident found again", count=2)
        assert acted(fake) == []
        assert fake.machine.state is RunState.GUEST_PANICKED

        filler.unlink()
        incident = await daemon.wait_incident("vm", ending="restarted")
        assert incident.decisions == [("restart", "on-crash")]
        assert acted(fake) == ["system_reset", "cont"]
        assert await daemon.metric("panicd_journal_healthy") == 1
        assert len(daemon.journal()) == 1


@pytest.mark.parametrize("on_failure", ["preserve", "act"])
async def test_journal_that_cannot_be_written_stops_actions_unless_told_otherwise(
    socket_dir: Path, on_failure: str
) -> None:
    fake = FakeQemu(socket_dir / "vm.qmp")
    async with (
        RunningDaemon.start(socket_dir, RESTART, journal={"on_failure": on_failure}) as daemon,
        fake.running(),
    ):
        await daemon.wait_armed("vm")
        # No file may grow beyond this any more: setrlimit(2), RLIMIT_FSIZE.
        resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        fake.panic()
        await check_unwritable(daemon)
        if on_failure == "act":
            await fake.wait_command("cont")
            await daemon.wait_incident("vm", ending="restarted")
        else:
            await daemon.wait_log("open incident found again")
        assert acted(fake) == (["system_reset", "cont"] if on_failure == "act" else [])

        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, unlimited)
        await daemon.wait_incident("vm", ending="restarted")
        assert acted(fake) == ["system_reset", "cont"]


async def test_damaged_journal_is_set_aside_and_destructive_actions_wait_for_people(
    socket_dir: Path,
) -> None:
    fake = FakeQemu(socket_dir / "vm.qmp")
    async with RunningDaemon.start(socket_dir, RESTART) as daemon, fake.running():
        await daemon.wait_armed("vm")
        await daemon.terminate()
        journal = socket_dir / "state" / "journal.sqlite3"
        journal.write_bytes(b"not a database" * 1000)
        await daemon.start_again()

        said = await daemon.wait_log("the journal is damaged", level="critical")
        damaged = Path(said["set_aside"])
        assert damaged.read_bytes().startswith(b"not a database")
        assert (await daemon.call("status"))["journal_damaged"] is True
        assert await daemon.metric("panicd_journal_healthy") == 0

        await daemon.wait_armed("vm", since=daemon.began)
        fake.panic()
        incident = await daemon.wait_incident("vm", state="preserved")
        assert incident.decisions == [("preserve", "journal")]
        assert acted(fake) == []

        damaged.unlink()
        assert await daemon.metric("panicd_journal_healthy") == 1
        await daemon.call("act", domain="vm", action="restart", why="the journal was looked at")
        fake.panic()
        second = await daemon.wait_incident("vm", ending="restarted", count=2)
        assert second.decisions == [("restart", "on-crash")]


# -- reload


async def test_open_incident_keeps_its_decision_when_the_configuration_changes(
    socket_dir: Path,
) -> None:
    fake = FakeQemu(socket_dir / "vm.qmp")
    async with RunningDaemon.start(socket_dir, PRESERVE) as daemon, fake.running():
        await daemon.wait_armed("vm")
        fake.panic()
        incident = await daemon.wait_incident("vm", state="preserved")

        daemon.write_config(defaults={"on_crash": "explode"})
        with pytest.raises(RefusedError, match="on_crash"):
            await daemon.call("reload")
        assert await daemon.metric("panicd_config_last_reload_successful") == 0
        assert (await daemon.domain("vm"))["on_crash"] == "preserve"

        mark = daemon.mark()
        daemon.write_config(defaults=RESTART)
        await daemon.call("reload")
        await daemon.wait_armed("vm", since=mark)
        assert await daemon.metric("panicd_config_last_reload_successful") == 1
        status = await daemon.domain("vm")
        assert (status["on_crash"], status["incident"]) == ("restart", incident.id)
        assert status["incident_state"] == "preserved"
        assert acted(fake) == []

        await daemon.call("act", domain="vm", action="restart", why="it was looked at")
        fake.panic()
        again = await daemon.wait_incident("vm", ending="restarted", count=2)
        assert again.decisions == [("restart", "on-crash")]
        assert acted(fake) == ["system_reset", "cont"] * 2
