"""A panic that goes as foreseen up to its first command, and what keeps one from that."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import wait_all_tasks_blocked

from panicd.host.timers import Timer, Timers
from panicd.incident import rush as rushing
from panicd.incident.reaction import Reaction
from panicd.incident.rush import (
    ATTACHED_WITHIN,
    CARRIED_OUT_WITHIN,
    COMMITTED_AFTER,
    LOOKS_EVERY,
    SLICE,
    WAITS_AT_MOST,
    Rush,
)
from panicd.journal.journal import Journal, JournalError
from panicd.rules.incident import AnyEntry
from panicd.rules.machine import steps
from panicd.rules.machine.ahead import foresee
from panicd.rules.machine.inputs import (
    Answered,
    Durable,
    Elapsed,
    Finished,
    Heard,
    Input,
    Lost,
    Reconsider,
)
from panicd.rules.on_crash import OnCrash
from panicd.rules.qapi import ResetEvent, ResumeEvent
from panicd.rules.settings import Evidence, Policy
from tests.parts.background import background
from tests.parts.daemon import DaemonInside
from tests.parts.fake import FakeQemu
from tests.parts.profile import RunState
from tests.parts.reactions import note_reactions
from tests.parts.wire import Message
from tests.rules.strategies import COREDUMP, MODERN

A_TEST = 60.0
ENTRIES = {
    "restart": [
        *["opened", "decided", "step-begun", "step-begun", "step-begun"],
        *["step-ended", "step-ended", "step-ended", "step-begun", "step-ended", "closed"],
    ],
    "destroy": [
        *["opened", "decided", "step-begun", "step-begun", "step-begun"],
        *["step-ended", "step-ended", "step-ended"],
    ],
}
"""Their kinds, as the machine notes them."""


CHANGING = {"stop", "system_reset", "cont", "quit"}


def changing(vm: FakeQemu) -> list[str]:
    """The commands that changed a VM's guest."""
    return [name for name in vm.commands if name in CHANGING]


@pytest.fixture
def reactions(monkeypatch: pytest.MonkeyPatch) -> list[Reaction]:
    """Every reaction that goes as foreseen at first."""
    return note_reactions(monkeypatch)


@asynccontextmanager
async def connected(
    directory: Path,
    on_crash: str = "restart",
    on_failure: str = "preserve",
    *,
    evidence: bool = False,
    before_action: str = "memory",
) -> AsyncIterator[tuple[DaemonInside, FakeQemu]]:
    """A daemon, and one VM that is armed."""
    policy = {"on_crash": on_crash, "evidence": {"budget": "3s" if evidence else "0s"}}
    vm = FakeQemu(directory / "vm.qmp")
    journal = {"on_failure": on_failure, "before_action": before_action}
    async with DaemonInside.start(directory, policy, journal=journal) as daemon, vm.running():
        await daemon.wait_armed("vm")
        yield daemon, vm


@pytest.mark.parametrize("evidence", [False, True])
@pytest.mark.parametrize(
    ("on_crash", "ending", "commands"),
    [("restart", "restarted", ["system_reset", "cont"]), ("destroy", "destroyed", ["quit"])],
)
async def test_a_panic_goes_as_foreseen(
    socket_dir: Path,
    reactions: list[Reaction],
    on_crash: str,
    ending: str,
    commands: list[str],
    *,
    evidence: bool,
) -> None:
    async with connected(socket_dir, on_crash, evidence=evidence) as (daemon, vm):
        vm.panic()
        seen = await daemon.wait_incident("vm", ending=ending)
        assert changing(vm) == commands
        if evidence:
            await daemon.wait_kept(seen)
            record: Any = {"evidence": None}
            while record["evidence"] is None:
                record = await daemon.call("incident", incident=seen.id)
            facts = record["evidence"]["facts"]
            assert facts["decision"]["steps"][1]["step"] == "Collect"
            assert record["screenshot"]
    (reaction,) = reactions
    assert reaction.is_given
    assert reaction.chronicle.is_written
    with Journal.open(socket_dir / "state" / "journal.sqlite3") as journal:
        (incident,) = journal.incidents()
        kinds = [entry.kind for entry in journal.history(incident.id)]
    expected = list(ENTRIES[on_crash])
    if evidence:
        expected[2:5] = ["step-begun"] * 4
        expected.insert(expected.index("step-ended"), "step-ended")
    assert kinds[: len(expected)] == expected


async def test_each_entry_has_the_time_at_which_it_came(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch, reactions: list[Reaction]
) -> None:
    async with connected(socket_dir) as (daemon, vm):
        held = vm.hold_reply("query-status")
        vm.panic()
        await held.reached.wait()
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() + 1.5)  # less than a clock that was set
        held.release()
        await daemon.wait_incident("vm", ending="restarted")
    assert reactions[0].is_given
    with Journal.open(socket_dir / "state" / "journal.sqlite3") as journal:
        (incident,) = journal.incidents()
        opened, *others = journal.history(incident.id)
    assert [entry.kind for entry in others if entry.at < opened.at + 1] == ENTRIES["restart"][1:5]


async def test_only_what_follows_from_the_command_waits_for_others(
    socket_dir: Path, reactions: list[Reaction]
) -> None:
    async with connected(socket_dir) as (daemon, vm):
        vm.panic()
        await daemon.wait_incident("vm", ending="restarted")
    (reaction,) = reactions
    reset, resume = ResetEvent(0.0, guest=False, reason=""), ResumeEvent(0.0)
    follows: list[Input] = [Answered(1, ()), Heard(reset), Elapsed(1)]  # the evidence's time
    others: list[Input] = [Heard(resume), Lost(), Reconsider(), Durable(1)]
    assert not any(map(reaction.may_wait, [*follows, *others]))
    reaction._services.rush.begin()
    assert [reaction.may_wait(came) for came in follows] == [True] * len(follows)
    assert [reaction.may_wait(came) for came in others] == [False] * len(others)


@pytest.mark.parametrize("held_up", ["query-status", "add-fd"])
async def test_guest_that_others_reset_meanwhile_is_not_reset(
    socket_dir: Path, reactions: list[Reaction], held_up: str
) -> None:
    async with connected(socket_dir, evidence=held_up == "add-fd") as (daemon, vm):
        held = vm.hold_reply(held_up)
        vm.panic()
        await held.reached.wait()
        await vm.foreign("system_reset")
        await vm.foreign("cont")
        held.release()
        await daemon.wait_incident("vm", ending="foreign-reset")
        assert changing(vm) == []
    (reaction,) = reactions
    assert not reaction.is_given
    assert not reaction._services.rush._count, "nobody waits for it"


@pytest.mark.parametrize("stopped", [True, False])
def test_an_answer_before_the_stop_has_evidence_taken_by_the_machine(*, stopped: bool) -> None:
    """As libvirt may give it. The STOP may not come any more."""
    policy = Policy(COREDUMP, OnCrash.RESTART, evidence=Evidence(budget=3.0))
    foreseen = foresee(policy, MODERN)
    assert foreseen is not None
    reaction = object.__new__(Reaction)
    reaction._foreseen = foreseen
    reaction._missing = {Answered, Durable, Finished} | (set() if stopped else {Heard})
    quiet = Answered(0, ({}, [], {"status": "none"}, {"status": "guest-panicked"}))
    assert reaction._is_foreseen(quiet) is stopped


async def test_slow_evidence_ends_the_reaction_and_is_taken_once(
    socket_dir: Path, reactions: list[Reaction], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "EVIDENCE_WITHIN", 0.05)
    async with connected(socket_dir, evidence=True) as (daemon, vm):
        held = vm.hold_reply("add-fd")
        vm.panic()
        await held.reached.wait()
        await daemon.wait_log("step ended", step="SystemReset", outcome="skipped")
        assert changing(vm) == []
        held.release()
        incident = await daemon.wait_incident("vm", ending="restarted")
        assert changing(vm) == ["system_reset", "cont"]
        assert vm.commands.count("screendump") == 1
        await daemon.wait_kept(incident)
    (reaction,) = reactions
    assert not reaction.is_given


async def test_a_hold_that_begins_while_evidence_is_taken_keeps_the_guest(
    socket_dir: Path, reactions: list[Reaction]
) -> None:
    async with connected(socket_dir, evidence=True) as (daemon, vm):
        held = vm.hold_reply("add-fd")
        vm.panic()
        await held.reached.wait()
        await daemon.call("hold", domain="vm", why="test", seconds=60.0)
        held.release()
        await daemon.wait_incident("vm", state="preserved")
        assert changing(vm) == []
    assert not reactions[0].is_given


async def test_a_panic_before_the_first_command_is_a_repeat(
    socket_dir: Path, reactions: list[Reaction]
) -> None:
    async with connected(socket_dir) as (daemon, vm):
        held = vm.hold_reply("query-status")
        vm.panic()
        await held.reached.wait()
        vm.emit("GUEST_PANICKED", {"action": "pause"})
        while not daemon.logged("guest panicked again"):
            assert len(reactions) == 1
            await trio.lowlevel.checkpoint()
        held.release()
        await daemon.wait_incident("vm", ending="restarted")
        assert changing(vm) == ["system_reset", "cont"]


async def test_guest_that_is_migrated_is_waited_for(
    socket_dir: Path, reactions: list[Reaction], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connected(socket_dir) as (daemon, vm):
        execute = vm.machine.execute

        def migrating(name: str, arguments: Message) -> object:
            return {"status": "active"} if name == "query-migrate" else execute(name, arguments)

        monkeypatch.setattr(vm.machine, "execute", migrating)
        vm.panic()
        await daemon.wait_log("waiting")
        assert changing(vm) == []
        monkeypatch.setattr(vm.machine, "execute", execute)
        await daemon.wait_incident("vm", ending="restarted")
        assert changing(vm) == ["system_reset", "cont"]
    (reaction,) = reactions
    assert not reaction.is_given


async def test_guest_whose_stop_does_not_come_is_stopped(
    socket_dir: Path, reactions: list[Reaction]
) -> None:
    async with connected(socket_dir) as (daemon, vm):
        vm.panic(hold_stop=True)
        await daemon.wait_incident("vm", ending="restarted")
        assert changing(vm) == ["stop", "system_reset", "cont"]
    (reaction,) = reactions
    assert not reaction.is_given


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("on_failure", ["preserve", "act"])
async def test_nothing_is_given_that_could_not_be_written(
    socket_dir: Path,
    reactions: list[Reaction],
    monkeypatch: pytest.MonkeyPatch,
    on_failure: str,
    *,
    at_once: bool,
) -> None:
    append_soon, failed = Journal.append_soon, trio.Event()

    def fail_once(
        journal: Journal,
        incident_id: str,
        entries: Sequence[AnyEntry],
        done: Callable[[BaseException | None], None],
    ) -> None:
        if failed.is_set():
            append_soon(journal, incident_id, entries, done)
            return
        failed.set()
        error = JournalError("no space left on device")
        if at_once:
            raise error
        trio.lowlevel.current_trio_token().run_sync_soon(done, error)

    monkeypatch.setattr(Journal, "append_soon", fail_once)
    case = connected(socket_dir, on_failure=on_failure, before_action="disk")
    async with case as (daemon, vm):
        mark = len(vm.calls)
        vm.panic()
        await failed.wait()
        incident = await daemon.wait_incident("vm", ending="restarted")
        await daemon.wait_kept(incident)
        sessions = [name for name in vm.commands[mark:] if name == "qmp_capabilities"]
        assert len(sessions) == (on_failure == "preserve")  # it is begun anew once it can be
        assert changing(vm) == ["system_reset", "cont"]
    assert not reactions[0].is_given


async def test_session_that_ends_with_the_panic_is_taken_up_again(socket_dir: Path) -> None:
    async with connected(socket_dir) as (daemon, vm):
        cut = vm.cut_before("query-migrate")
        vm.panic()
        await cut.reached.wait()
        await daemon.wait_incident("vm", ending="restarted")
        assert changing(vm) == ["system_reset", "cont"]
        assert vm.machine.state is RunState.RUNNING


# -- first commands go first


async def test_what_follows_waits_for_the_first_commands_of_all(
    mock_clock: trio.testing.MockClock,
) -> None:
    timers = Timers()
    rush, done = Rush(timers), trio.Event()
    async with background() as nursery:
        nursery.start_soon(timers.run)
        rush.begin()
        rush.begin()
        rush.end()
        rush.afterwards(done.set)
        mock_clock.jump(WAITS_AT_MOST / 2)
        await wait_all_tasks_blocked()
        assert not done.is_set()
        rush.end()
        mock_clock.jump(LOOKS_EVERY)
        await done.wait()


async def test_it_does_not_wait_for_ever(mock_clock: trio.testing.MockClock) -> None:
    timers = Timers()
    rush, done = Rush(timers), trio.Event()
    async with background() as nursery:
        nursery.start_soon(timers.run)
        rush.begin()
        rush.afterwards(done.set)
        await wait_all_tasks_blocked()
        assert not done.is_set()
        mock_clock.jump(WAITS_AT_MOST / 2)
        rush.begin()  # whoever comes later does not put it off
        mock_clock.jump(WAITS_AT_MOST / 2)
        await wait_all_tasks_blocked()
        assert done.is_set()


async def test_an_intent_is_committed_before_the_rest_is_done(
    mock_clock: trio.testing.MockClock,
) -> None:
    timers = Timers()
    rush, committed, done = Rush(timers), trio.Event(), trio.Event()
    async with background() as nursery:
        nursery.start_soon(timers.run)
        rush.begin()
        rush.afterwards(done.set)
        rush.commit(committed.set)
        mock_clock.jump(COMMITTED_AFTER / 2)
        await wait_all_tasks_blocked()
        assert not committed.is_set()
        mock_clock.jump(COMMITTED_AFTER / 2)
        await wait_all_tasks_blocked()
        assert committed.is_set()
        assert not done.is_set()


async def test_it_is_done_a_little_at_a_time(mock_clock: trio.testing.MockClock) -> None:
    slices = 0

    class Counted(Timers):
        def after(self, seconds: float, call: Callable[[], None]) -> Timer:
            nonlocal slices
            slices += 1
            return super().after(seconds, call)

    timers = Counted()
    rush, done = Rush(timers), list[int]()

    def work() -> None:
        mock_clock.jump(SLICE * 1.1)  # more than a slice, whatever the rounding
        done.append(slices)

    async with background() as nursery:
        nursery.start_soon(timers.run)
        for _ in range(3):
            rush.afterwards(work)
        await wait_all_tasks_blocked()
        assert not done  # the first commands are carried out meanwhile
        mock_clock.jump(CARRIED_OUT_WITHIN * 1.1)
        await wait_all_tasks_blocked()
    assert done == [1, 2, 3]


async def test_what_may_wait_for_the_attaching_of_others_does_so(
    mock_clock: trio.testing.MockClock,
) -> None:
    timers, done = Timers(), list[str]()
    rush = Rush(timers)
    async with background() as nursery:
        nursery.start_soon(timers.run)
        for name in ("first", "second", "third"):
            rush.after_attaching(partial(done.append, name))
            mock_clock.jump(ATTACHED_WITHIN * 0.9)
            await wait_all_tasks_blocked()
        assert done == ["first"]  # it could have been the only one
        mock_clock.jump(ATTACHED_WITHIN * 0.2)
        await wait_all_tasks_blocked()
        assert done == ["first", "second", "third"]
        rush.after_attaching(partial(done.append, "later"))
        mock_clock.jump(CARRIED_OUT_WITHIN * 1.1)
        await wait_all_tasks_blocked()
        assert done == ["first", "second", "third", "later"]


async def test_with_evidence_the_second_command_waits_for_the_first_commands_of_others(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rushing, "WAITS_AT_MOST", A_TEST)
    given, looks, work = list[tuple[str, str]](), list[Rush](), Rush._work

    def noted(rush: Rush) -> None:
        looks.append(rush)
        work(rush)

    monkeypatch.setattr(Rush, "_work", noted)
    monkeypatch.setattr(steps, "EVIDENCE_WITHIN", A_TEST)
    policy = {"on_crash": "restart", "evidence": {"budget": f"{A_TEST:.0f}s"}}
    vms = {name: FakeQemu(socket_dir / f"{name}.qmp", name=name) for name in ("slow", "vm")}
    held = vms["slow"].hold_reply("add-fd")  # so that its evidence takes its time
    async with (
        DaemonInside.start(socket_dir, policy) as daemon,
        vms["slow"].running(),
        vms["vm"].running(),
    ):
        for name, vm in vms.items():
            await daemon.wait_armed(name)
            monkeypatch.setattr(vm.machine, "execute", noting(name, vm, given))
        vms["slow"].panic()
        await held.reached.wait()
        vms["vm"].panic()
        while len(looks) < 2 and ("vm", "cont") not in given:
            await trio.lowlevel.checkpoint()
        held.release()
        for name in vms:
            await daemon.wait_incident(name, ending="restarted")
    assert given.index(("slow", "system_reset")) < given.index(("vm", "cont"))
    assert given.index(("vm", "system_reset")) < given.index(("slow", "system_reset"))


def noting(
    name: str, vm: FakeQemu, given: list[tuple[str, str]]
) -> Callable[[str, Message], object]:
    """Return what carries out a VM's commands, and notes them."""
    execute = vm.machine.execute

    def note(command: str, arguments: Message) -> object:
        given.append((name, command))
        return execute(command, arguments)

    return note


async def test_a_rush_lasts_while_more_panics_may_be_unread(
    mock_clock: trio.testing.MockClock,
) -> None:
    rush, seen = Rush(Timers()), []
    rush.begin()
    rush.end()
    seen.append(rush.goes_on)  # one panic alone: what follows it need not wait
    mock_clock.jump(CARRIED_OUT_WITHIN / 2)
    rush.begin()
    rush.end()
    seen.append(rush.goes_on)
    mock_clock.jump(CARRIED_OUT_WITHIN * 1.1)
    seen.append(rush.goes_on)
    for _ in range(int(WAITS_AT_MOST / (CARRIED_OUT_WITHIN / 2)) + 3):
        rush.begin()
        rush.end()
        mock_clock.jump(CARRIED_OUT_WITHIN / 2)
    seen.append(rush.goes_on)  # nothing waits for ever
    assert seen == [False, True, False, False]
