"""What others do to a VM: recorded as what it is, waited for, and undone only where told to."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from panicd.demo.guests import Guest
from panicd.rules.incident import State
from panicd.rules.machine import resting
from panicd.rules.machine.deciding import ENFORCED_AT_MOST
from panicd.service.control_client import RefusedError
from tests.e2e.preserved import preserved
from tests.parts.daemon import DaemonInside, ObservedDaemon, RunningDaemon
from tests.parts.qemu import RealQemu

pytestmark = pytest.mark.real

SIZE = 4 * 1024 * 1024


async def observed(daemon: ObservedDaemon, incident: str) -> list[str]:
    """What the journal says others did in an incident."""
    told = await daemon.call("incident", incident=incident)
    return [entry["what"] for entry in told["history"] if entry["kind"] == "observed"]


@pytest.mark.parametrize(
    ("commands", "ending", "action", "seen"),
    [
        (["cont"], "foreign-resume", "resume", []),
        (["system_reset", "cont"], "foreign-reset", "reset", []),
        (["quit"], "qemu-gone", "exit", ["shutdown, host-qmp-quit", "QEMU ended: host-quit"]),
    ],
)
async def test_what_others_do_to_a_panicked_guest_is_recorded(
    socket_dir: Path, commands: list[str], ending: str, action: str, seen: list[str]
) -> None:
    async with (
        DaemonInside.start(socket_dir, {"on_crash": "preserve"}) as daemon,
        RealQemu.start(socket_dir, guest=Guest.COUNT) as vm,
    ):
        await daemon.wait_armed("vm")
        await vm.panic()
        incident = await daemon.wait_incident("vm", state="preserved")
        for command in commands:
            await vm.witness.send(command)
        ended = await daemon.wait_incident("vm", ending=ending)
        assert ended.id == incident.id
        await daemon.wait_kept(ended)
        assert await observed(daemon, incident.id) == seen
        assert await daemon.metric("panicd_foreign_actions_total", action=action) == 1
        assert len(daemon.incidents()) == 1


async def test_what_others_do_to_a_healthy_guest_is_seen_and_is_no_incident(
    socket_dir: Path,
) -> None:
    async with (
        DaemonInside.start(socket_dir, {"on_crash": "destroy"}) as daemon,
        RealQemu.start(socket_dir, guest=Guest.COUNT) as vm,
    ):
        await daemon.wait_armed("vm")
        await vm.witness.execute("stop")
        await daemon.wait_log("seen", what="guest stopped, run state paused", domain="vm")
        await vm.witness.execute("cont")
        await daemon.wait_log("seen", what="guest resumed", domain="vm")
        await vm.witness.execute("system_reset")
        await daemon.wait_log("seen", what="guest reset", domain="vm")
        assert daemon.incidents() == []
        await vm.wait_counting()


async def test_request_that_an_event_has_overtaken_is_refused(socket_dir: Path) -> None:
    async with (
        RunningDaemon.start(socket_dir, {"on_crash": "preserve"}) as daemon,
        RealQemu.start(socket_dir, guest=Guest.COUNT, proxied=True) as vm,
    ):
        await daemon.wait_armed("vm")
        await vm.panic()
        incident = await daemon.wait_incident("vm", state="preserved")
        async with trio.open_nursery() as nursery:
            with daemon.frozen():  # it finds both at once
                nursery.start_soon(refused, daemon, "vm")
                await vm.witness.execute("cont")
        ended = await daemon.wait_incident("vm", ending="foreign-resume")
        assert ended.id == incident.id
        assert vm.proxy.acting_commands == []


async def refused(daemon: ObservedDaemon, domain: str) -> None:
    """Ask for an act that is to be refused, with the reason."""
    with pytest.raises(RefusedError, match="no open incident"):
        await daemon.call("act", domain=domain, action="destroy", why="a test")


async def test_migration_of_a_preserved_guest_ends_its_incident(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(resting.LOOK_AFTER, State.PRESERVED, 0.05)
    async with preserved(socket_dir) as (daemon, vm, incident):
        await vm.witness.execute("migrate", {"uri": "exec:cat >/dev/null"})
        ended = await daemon.wait_incident("vm", ending="migrated")
        assert ended.id == incident.id
        assert await daemon.metric("panicd_foreign_actions_total", action="migration") == 1
        assert vm.proxy.acting_commands == []


async def test_enforced_stop_has_a_limit(socket_dir: Path) -> None:
    times = ENFORCED_AT_MOST
    async with preserved(socket_dir, enforce=True) as (daemon, vm, incident):
        for count in range(1, times + 1):
            await vm.witness.execute("cont")
            await daemon.wait_log("somebody resumed the panicked guest: stopped again", count=count)
            await vm.wait_status("paused")
            assert vm.proxy.acting_commands == ["stop"] * count
        await vm.witness.execute("cont")
        ended = await daemon.wait_incident("vm", ending="foreign-resume")
        assert ended.id == incident.id
        assert vm.proxy.acting_commands == ["stop"] * times
        await vm.wait_counting()
        await daemon.wait_kept(ended)
        assert await observed(daemon, incident.id) == []  # those stops were panicd's own


class Migration:
    """A migration that takes for ever."""

    told = "a migration"

    @staticmethod
    def prepare(directory: Path) -> tuple[str, ...]:
        """Arguments of a VM with memory that takes long to be sent: pages of zeroes don't."""
        memory = directory / "memory"
        memory.write_bytes(bytes(range(1, 256)) * (SIZE // 255))
        return ("-device", f"loader,file={memory},addr=0x200000,force-raw=on")

    @staticmethod
    async def begin(vm: RealQemu, _directory: Path) -> None:
        await vm.witness.execute("migrate-set-parameters", {"max-bandwidth": 16 * 1024})
        await vm.witness.execute("migrate", {"uri": "exec:cat >/dev/null"})

    @staticmethod
    async def end(vm: RealQemu) -> None:
        await vm.witness.execute("migrate_cancel")


class Backup:
    """A backup job that takes for ever."""

    told = "a block job"

    @staticmethod
    def prepare(_directory: Path) -> tuple[str, ...]:
        """Arguments of a VM with a disk."""
        return ("-drive", f"if=none,id=disk,driver=null-co,size={SIZE},read-zeroes=on")

    @staticmethod
    async def begin(vm: RealQemu, directory: Path) -> None:
        arguments: dict[str, Any] = {
            "device": "disk",
            "target": str(directory / "backup"),
            "sync": "full",
            "format": "raw",
            "speed": 1,
        }
        await vm.witness.execute("drive-backup", arguments)

    @staticmethod
    async def end(vm: RealQemu) -> None:
        await vm.witness.execute("block-job-cancel", {"device": "disk", "force": True})


@asynccontextmanager
async def panicked_during(
    work: type[Migration | Backup], directory: Path, on_crash: str, **policy: object
) -> AsyncIterator[tuple[DaemonInside, RealQemu]]:
    """A daemon, and a guest that panicked while something was done with it."""
    async with (
        DaemonInside.start(directory, {"on_crash": on_crash, **policy}) as daemon,
        RealQemu.start(
            directory, guest=Guest.COUNT, proxied=True, extra=work.prepare(directory)
        ) as vm,
    ):
        await daemon.wait_armed("vm")
        await work.begin(vm, directory)
        await vm.panic()
        yield daemon, vm


@pytest.mark.parametrize("on_crash", ["restart", "destroy", "coredump-preserve"])
async def test_guest_that_is_resumed_during_a_plan_is_stopped_again(
    socket_dir: Path, on_crash: str
) -> None:
    policy = {"enforce": True, "coredump": {"format": "elf-zstd"}}
    async with panicked_during(Backup, socket_dir, on_crash, **policy) as (daemon, vm):
        await daemon.wait_log("waiting", until_the_end_of=Backup.told)
        for count in range(1, ENFORCED_AT_MOST + 1):
            mark = daemon.mark()
            await vm.witness.execute("cont")
            await daemon.wait_log("somebody resumed the panicked guest: stopped again", since=mark)
            await daemon.wait_log("waiting", since=mark, until_the_end_of=Backup.told)
            await vm.wait_status("paused")
            assert vm.proxy.acting_commands == ["stop"] * count
        await Backup.end(vm)
        endings = {"restart": "restarted", "destroy": "destroyed", "coredump-preserve": ""}
        state = "preserved" if on_crash == "coredump-preserve" else ""
        incident = await daemon.wait_incident("vm", state=state, ending=endings[on_crash])
        assert len(daemon.incidents()) == 1
        assert incident.decisions == [(on_crash, "on-crash")]
        acts = {
            "restart": ["system_reset", "cont"],
            "destroy": ["quit"],
            "coredump-preserve": ["getfd", "dump-guest-memory"],
        }
        assert vm.proxy.acting_commands == ["stop"] * ENFORCED_AT_MOST + acts[on_crash]


async def test_guest_that_is_resumed_during_a_plan_once_too_often_runs(socket_dir: Path) -> None:
    async with panicked_during(Backup, socket_dir, "destroy", enforce=True) as (daemon, vm):
        await daemon.wait_log("waiting", until_the_end_of=Backup.told)
        for count in range(1, ENFORCED_AT_MOST + 1):
            await vm.witness.execute("cont")
            again = "somebody resumed the panicked guest: stopped again"
            await daemon.wait_log(again, count=count)
            await vm.wait_status("paused")
        await vm.witness.execute("cont")
        await daemon.wait_incident("vm", ending="foreign-resume")
        assert vm.proxy.acting_commands == ["stop"] * ENFORCED_AT_MOST
        await vm.wait_counting()


async def test_somebodys_dump_is_waited_for(socket_dir: Path) -> None:
    pipe = socket_dir / "dump"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)  # the dump goes on as far as it is read
    async with (
        preserved(socket_dir) as (daemon, vm, _incident),
        trio.open_nursery() as nursery,
    ):
        dump = {"paging": False, "protocol": f"file:{pipe}", "detach": True}
        await vm.witness.execute("dump-guest-memory", dump)
        asked = {"domain": "vm", "action": "restart", "why": "a test"}
        nursery.start_soon(partial(daemon.call, "act", **asked))
        await daemon.wait_log("waiting", until_the_end_of="a dump")
        assert vm.proxy.acting_commands == []
        os.set_blocking(reader, True)
        await trio.to_thread.run_sync(read_all, reader)
        ended = await daemon.wait_incident("vm", ending="restarted")
        assert "waited for a dump" in ended.details
        assert vm.proxy.acting_commands == ["system_reset", "cont"]


def read_all(descriptor: int) -> None:
    """Read to the end, and close."""
    with open(descriptor, "rb") as file:
        while file.read(1024 * 1024):
            pass


async def test_guest_that_was_migrated_away_is_not_run_here_again(socket_dir: Path) -> None:
    policy = {"on_crash": "restart", "fallback": "restart"}
    async with (
        RunningDaemon.start(socket_dir, policy) as daemon,
        RealQemu.start(socket_dir, guest=Guest.COUNT, proxied=True) as vm,
    ):
        await daemon.wait_armed("vm")
        with daemon.frozen():  # it hears of the panic when the migration is over already
            await vm.panic()
            await vm.wait_status("guest-panicked")
            await vm.witness.execute("migrate", {"uri": "exec:cat >/dev/null"})
            while (await vm.witness.execute("query-migrate")).get("status") != "completed":
                pass  # each look is a round trip to QEMU
            await vm.wait_status("postmigrate")
        incident = await daemon.wait_incident("vm", state="preserved")
        assert incident.decisions == [("restart", "on-crash"), ("preserve", "action-failed")]
        assert "the guest was migrated away" in incident.details
        assert vm.proxy.acting_commands == []
        assert await vm.status() == "postmigrate"


@pytest.mark.parametrize("work", [Migration, Backup])
async def test_work_in_progress_is_waited_for(
    socket_dir: Path, work: type[Migration | Backup]
) -> None:
    async with panicked_during(work, socket_dir, "restart") as (daemon, vm):
        await daemon.wait_log("waiting", until_the_end_of=work.told, count=2)
        assert vm.proxy.acting_commands == []
        await work.end(vm)
        incident = await daemon.wait_incident("vm", ending="restarted")
        assert ("AwaitQuiet", "done") in incident.steps
        assert f"waited for {work.told}" in incident.details
        assert vm.proxy.acting_commands == ["system_reset", "cont"]
        await vm.wait_counting()


@pytest.mark.parametrize("work", [Migration, Backup])
async def test_work_in_progress_is_waited_for_so_long_only(
    socket_dir: Path, work: type[Migration | Backup]
) -> None:
    timeouts = {"quiet": "500ms"}
    async with panicked_during(work, socket_dir, "destroy", timeouts=timeouts) as (daemon, vm):
        incident = await daemon.wait_incident("vm", state="preserved")
        assert incident.decisions == [("destroy", "on-crash"), ("preserve", "action-failed")]
        assert f"{work.told} did not end in 0.5 s" in incident.details
        assert vm.proxy.acting_commands == []
        assert await vm.status() == "guest-panicked"
        await work.end(vm)
