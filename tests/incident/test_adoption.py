"""Open incidents that are gone on with, though their QEMU has ended."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
import trio

from panicd.demo.guests import Guest
from panicd.incident import adoption
from panicd.incident.waiting import WaitingRoom
from panicd.journal.chronicle import Chronicle, Keeping
from panicd.journal.journal import Journal, JournalError
from panicd.rules.incident import (
    AnyEntry,
    Closed,
    Decided,
    Opened,
    Outcome,
    Source,
    StepBegun,
    StepEnded,
)
from panicd.rules.machine.inputs import Plight
from panicd.rules.on_crash import Action, OnCrash
from panicd.rules.plan import AwaitReturn, Plan, Quit, RunRelaunch
from panicd.rules.policy import Decision, Reason
from panicd.service.daemon import Daemon
from tests.parts.daemon import DaemonInside, RunningDaemon
from tests.parts.qemu import RealQemu
from tests.parts.vitals import was_signalled

UUID = "5e1f0a6c-9c3b-4f0e-8d2a-1b7c3d9e4f60"
ENDED = "00000000-0000-0000-0000-000000000000/1/2"  # of another boot
Done = Callable[[BaseException | None], None]
DECISION = Decision(OnCrash.RESTART, Action.RESTART, False, Reason.ON_CRASH, relaunch=True)


async def quit_before_its_relaunch(directory: Path, told: Path) -> None:
    """Leave what a daemon does that was killed when it had ended a QEMU."""
    command = ("/bin/sh", "-c", f"echo begun >>{told}")
    plan = Plan(DECISION, (Quit(1.0), RunRelaunch(5.0, command=command), AwaitReturn(60.0)))
    opened = Opened(1.0, "vm", UUID, str(directory / "vm.qmp"), ENDED, Source.EVENT)
    (directory / "state").mkdir()
    with Journal.open(directory / "state" / "journal.sqlite3") as journal:
        ended = (StepBegun(3.0, 0), StepEnded(4.0, 0, Outcome.DONE))
        await journal.append("i1", opened, Decided(2.0, plan), *ended)


def begins_the_relaunch(entries: Sequence[AnyEntry]) -> bool:
    return any(isinstance(entry, StepBegun) and entry.index == 1 for entry in entries)


async def test_a_relaunch_that_a_stop_forestalled_is_made_up_for(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = socket_dir / "told"
    await quit_before_its_relaunch(socket_dir, told)
    append_soon, written = Journal.append_soon, trio.Event()
    write_the_rest, late = Daemon._write_the_rest, list[Callable[[], None]]()

    def append_and_tell_late(
        journal: Journal, incident_id: str, entries: Sequence[AnyEntry], done: Done
    ) -> None:
        def tell(error: BaseException | None) -> None:
            if begins_the_relaunch(entries):
                late.append(partial(done, error))
                written.set()
            else:
                done(error)

        append_soon(journal, incident_id, entries, tell)

    async def tell_and_write_the_rest(daemon: Daemon, keeping: Keeping) -> None:
        late.pop()()
        await write_the_rest(daemon, keeping)

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "append_soon", append_and_tell_late)
        patched.setattr(Daemon, "_write_the_rest", tell_and_write_the_rest)
        async with DaemonInside.start(socket_dir) as daemon:
            await written.wait()
        (stands,) = daemon.journal()
        assert stands.steps[1].outcome is Outcome.SKIPPED
        assert not told.exists()
    async with DaemonInside.start(socket_dir) as daemon:
        await daemon.wait_log("step begins", step="AwaitReturn")
    assert told.read_text() == "begun\n"


async def test_a_relaunch_that_goes_on_without_its_vm_is_in_the_status(socket_dir: Path) -> None:
    fifo = socket_dir / "told"
    os.mkfifo(fifo)  # the command waits until it is read
    await quit_before_its_relaunch(socket_dir, fifo)
    async with DaemonInside.start(socket_dir) as daemon:
        await daemon.wait_log("step begins", step="RunRelaunch")
        (waiting,) = (await daemon.call("status"))["waiting"]
        assert (waiting["incident"], waiting["incident_state"]) == ("i1", "acting")
        assert await daemon.metric("panicd_incidents_open") == 1
        assert await trio.Path(fifo).read_text() == "begun\n"
        await daemon.wait_log("step begins", step="AwaitReturn")
        assert len((await daemon.call("status"))["waiting"]) == 1


async def test_a_relaunch_that_the_journal_forestalled_is_made_up_for(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = socket_dir / "told"
    await quit_before_its_relaunch(socket_dir, told)
    append_soon, failed = Journal.append_soon, trio.Event()

    def fail_once(
        journal: Journal, incident_id: str, entries: Sequence[AnyEntry], done: Done
    ) -> None:
        if begins_the_relaunch(entries) and not failed.is_set():
            failed.set()
            raise JournalError("no space left on device")
        append_soon(journal, incident_id, entries, done)

    monkeypatch.setattr(Journal, "append_soon", fail_once)
    monkeypatch.setattr(adoption, "RETRY_EVERY", 0.02)
    async with DaemonInside.start(socket_dir) as daemon:
        await daemon.wait_log("step begins", step="AwaitReturn")
        assert failed.is_set()
    assert told.read_text() == "begun\n"


async def quit_in_progress(directory: Path) -> None:
    """Leave what a daemon does that was killed while a QEMU ended that has ended since."""
    decision = Decision(OnCrash.DESTROY, Action.DESTROY, False, Reason.ON_CRASH)
    opened = Opened(1.0, "vm", UUID, str(directory / "vm.qmp"), ENDED, Source.EVENT)
    (directory / "state").mkdir()
    with Journal.open(directory / "state" / "journal.sqlite3") as journal:
        plan = Plan(decision, (Quit(1.0),))
        await journal.append("i1", opened, Decided(2.0, plan), StepBegun(3.0, 0))


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> trio.Event:
    """A journal that takes everything but incidents' ends, until there is room (set)."""
    append_soon, room = Journal.append_soon, trio.Event()

    def append_if_there_is_room(
        journal: Journal, incident_id: str, entries: Sequence[AnyEntry], done: Done
    ) -> None:
        if any(isinstance(entry, Closed) for entry in entries) and not room.is_set():
            raise JournalError("no space left on device")
        append_soon(journal, incident_id, entries, done)

    monkeypatch.setattr(Journal, "append_soon", append_if_there_is_room)
    monkeypatch.setattr(adoption, "RETRY_EVERY", 0.02)
    return room


async def test_an_end_that_can_t_be_written_is_seen_to_once(
    socket_dir: Path, full: trio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    await quit_in_progress(socket_dir)
    hand_over, handed_over = WaitingRoom.hand_over, list[str]()

    def hand_over_and_tell(
        room: WaitingRoom, chronicle: Chronicle, plight: Plight = Plight.ENDED
    ) -> None:
        handed_over.append(chronicle.incident.id)
        hand_over(room, chronicle, plight)

    monkeypatch.setattr(WaitingRoom, "hand_over", hand_over_and_tell)
    async with DaemonInside.start(socket_dir) as daemon:
        incident = await daemon.wait_incident("vm", ending="destroyed")
        await daemon.wait_log("the journal can't be written", count=5)  # it is tried again
        full.set()
        await daemon.wait_kept(incident)
        assert handed_over == ["i1"]


@pytest.mark.real
async def test_the_end_of_a_hung_qemu_that_can_t_be_written_is_written_once_it_can_be(
    socket_dir: Path, full: trio.Event
) -> None:
    policy = {"on_crash": "destroy", "timeouts": {"quit": "200ms", "terminate": "1h"}}
    async with RealQemu.start(socket_dir, guest=Guest.PANIC_ON_KEY) as vm:
        async with RunningDaemon.start(socket_dir, policy, time_limit=40) as killed:
            await killed.wait_armed("vm")
            with killed.frozen():
                await vm.press_key()
                await vm.wait_event("STOP")
                os.kill(vm.pid, signal.SIGSTOP)
            await killed.wait_log("step begins", step="Terminate")
            while not was_signalled(vm.pid):  # so that this step is on record
                await trio.lowlevel.checkpoint()
            await killed.kill()
        async with DaemonInside.start(socket_dir, policy, time_limit=40) as daemon:
            await daemon.wait_log("QEMU does not answer, so panicd goes on ending it")
            os.kill(vm.pid, signal.SIGKILL)
            incident = await daemon.wait_incident("vm", ending="destroyed")
            await daemon.wait_log("the journal can't be written", count=3)
            full.set()
            await daemon.wait_kept(incident)
