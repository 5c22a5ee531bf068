"""A VM, its monitor, a journal and panicd's machine as one value, and all that may happen next.

Nothing here waits and nothing is drawn by chance: ``moves`` gives every way in which it may go on.
What is under way goes on in any order that is possible: QEMU deals with commands in theirs, the
connection keeps the order of what QEMU says, the journal that of its entries; timers may go off at
any time. What befalls the VM and panicd from outside is limited by a budget, for it has no end.

The world knows what panicd was told: each message carries how the guest stood when it was sent. It
objects to a command that is given to a guest of which panicd was told that it must not be given.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from panicd.rules.capability import Capability, PanicSetting
from panicd.rules.ending import Cause
from panicd.rules.incident import (
    AnyEntry,
    Decided,
    Incident,
    Opened,
    Outcome,
    StepBegun,
    StepResult,
    apply,
)
from panicd.rules.machine import State, effects, step
from panicd.rules.machine.inputs import (
    Adopted,
    Answered,
    Attached,
    Departed,
    Durable,
    Elapsed,
    Finished,
    Gone,
    Heard,
    Input,
    Lost,
    Moment,
    NoAnswer,
    Plight,
)
from panicd.rules.machine.state import Left
from panicd.rules.machine.vm import Vm
from panicd.rules.machine.work import Work
from panicd.rules.on_crash import Action, OnCrash
from panicd.rules.panic_device import PanicDevice
from panicd.rules.qapi import (
    Event,
    GuestPanickedEvent,
    JobStatusEvent,
    MigrationEvent,
    PanicAction,
    ResetEvent,
    ResumeEvent,
    RunState,
    ShutdownEvent,
    StopEvent,
    WorkEvent,
)
from panicd.rules.recovery import took_evidence
from panicd.rules.settings import Budget, CoredumpSettings, Evidence, Policy

NOW: Final = 1_800_000_000.0
QEMU: Final = (7, 2, 0)


class ViolationError(Exception):
    """panicd did what it must never do, or left undone what it must do."""


@dataclass(frozen=True, slots=True)
class Guest:
    """The truth about the guest.

    Attributes:
        state: QEMU's run state.
        panicked: its kernel panicked, and was not reset since.
        stopping: the panic's stop is still to come.
        must_boot: it was reset and has not run since.
        number: of its last panic.
        job: QEMU has a block job.
        migrates: QEMU has a migration under way.
    """

    state: RunState = RunState.RUNNING
    panicked: bool = False
    stopping: bool = False
    must_boot: bool = False
    number: int = 0
    job: bool = False
    migrates: bool = False

    @property
    def is_busy(self) -> bool:
        """Whether QEMU has work that an action on the guest would cut off."""
        return self.job or self.migrates


@dataclass(frozen=True, slots=True)
class Message:
    """What panicd is about to be told, and how the guest stood; None: that does not tell."""

    said: Event | Answered | Finished
    guest: Guest | None


@dataclass(frozen=True, slots=True)
class Limits:
    """How often each thing from outside may still happen."""

    panics: int
    foreign: int
    crashes: int
    cuts: int
    deaths: int
    silences: int = 0
    works: int = 0


@dataclass(frozen=True, slots=True)
class World:
    """All of it.

    Attributes:
        on_crash: the policy.
        collects: evidence is part of it.
        guest: the truth.
        alive: QEMU runs.
        commands: sent, and not yet dealt with: serial, name, arguments.
        channel: said, and not yet read.
        told: the guest as panicd was told of it last.
        connected: there is a session.
        state: the machine's; None: panicd does not run, or is not connected.
        entries: on the disk.
        noted: not yet on the disk.
        commits: serials that wait for that, each with how many entries go before it.
        timer: of the machine that is set.
        work: what is being done outside of the machine.
        lost: the session has ended, and the machine does not know it yet.
        gone_told: the process's end was told.
        left: what may still happen.
        conts: given to a panicked guest: the number of its panic, and how many.
        interruptions: how often panicd lost track of what it had given.
        departing: it is being found out why the session ended.
        late: panicd stopped a guest that others had reset a moment before.
        misread: and was not there to hear of it: nobody can tell the guest from a panicked one.
        enforce: a panicked guest that others let run is stopped again.
        process: what tells QEMU's process from others; empty: panicd does not know it.
        follows: panicd follows QEMU's work.
        answered: what panicd was told last of QEMU's work, when it asked since the panic.
    """

    on_crash: OnCrash
    left: Limits
    guest: Guest = Guest()
    alive: bool = True
    commands: tuple[tuple[int, tuple[str, ...]], ...] = ()
    channel: tuple[Message, ...] = ()
    told: Guest = Guest()
    connected: bool = False
    state: State | None = None
    entries: tuple[AnyEntry, ...] = ()
    noted: tuple[AnyEntry, ...] = ()
    commits: tuple[tuple[int, int], ...] = ()
    timer: int | None = None
    work: tuple[int, str] | None = None
    lost: bool = False
    watched: bool = False
    gone_told: bool = False
    conts: tuple[int, int] = (0, 0)
    interruptions: int = 0
    departing: bool = False
    late: bool = False
    misread: bool = False
    enforce: bool = False
    process: str = "qemu"
    collects: bool = False
    follows: bool = False
    answered: str = ""


def policy_of(world: World) -> Policy:
    """Return the policy that is tried."""
    settings = CoredumpSettings(Path("/dumps"))
    policy = Policy(settings, world.on_crash, restart=Budget(max=9), enforce=world.enforce)
    return replace(policy, evidence=Evidence(budget=3.0)) if world.collects else policy


def moment_of(world: World) -> Moment:
    """Return what holds: the same at all times."""
    return Moment(NOW, 0.0, policy_of(world), "vm", token=f"{world.guest.number:08x}")


CAPABILITY: Final = Capability(
    QEMU, PanicDevice.REQUESTED, panic_setting=PanicSetting.PAUSE, no_shutdown=True
)


def incident_of(entries: tuple[AnyEntry, ...]) -> Incident | None:
    """Return the open incident that the journal has."""
    incident: Incident | None = None
    for entry in entries:
        if isinstance(entry, Opened):
            incident = Incident(str(entry.at), entry)
        else:
            assert incident is not None
            incident = apply(incident, entry)
    return incident if incident is not None and incident.is_open else None


def tell(world: World, came: Input) -> World:
    """Return the world after the machine was told something."""
    assert world.state is not None
    state, made = step(world.state, came, moment_of(world))
    world = replace(world, state=state)
    for effect in made:
        world = carry_out(world, effect)
    if isinstance(state.phase, Left):
        world = _leave(world)
    return world


def carry_out(world: World, effect: effects.Effect) -> World:
    """Return the world after an effect."""
    match effect:
        case effects.Note(entry=entry):
            answered = "" if isinstance(entry, Opened) else world.answered
            return replace(world, noted=(*world.noted, entry), answered=answered)
        case effects.Commit(serial=serial):
            # One that goes no further than the one before it is done with that.
            first = [each for each in world.commits if each[1] < len(world.noted)]
            return replace(world, commits=(*first, (serial, len(world.noted))))
        case effects.Send(serial=serial, commands=commands):
            names = tuple(name for name, _ in commands)
            for name in names:
                world = object_to(world, name) if effect.acts else world
            if not world.connected:
                answers = tuple(NoAnswer("the session has ended", lost=True) for _ in names)
                return _later(world, Answered(serial, answers))
            return replace(world, commands=(*world.commands, (serial, names)))
        case effects.Wake(serial=serial):
            return replace(world, timer=serial)
        case effects.MakeDump(serial=serial):
            return replace(object_to(world, "dump"), work=(serial, "dump"))
        case effects.Collect(serial=serial):
            return replace(object_to(world, "collect"), work=(serial, "collect"))
        case effects.SendSignal(serial=serial, name=name):
            world = object_to(world, name)
            world = _die(world)
            return _later(world, Finished(serial, StepResult(Outcome.DONE)))
        case effects.WatchProcess():
            return replace(world, watched=True)
        case effects.Abort():
            return _cut(world)
        case effects.FindCause():
            return replace(world, departing=True)
        case effects.Leave() | effects.Say() | effects.PolicyInForce():
            return world
        case _:
            raise ViolationError(f"nobody expected {effect}")


def _later(world: World, came: Input) -> World:
    """Tell the machine something as soon as the step that led to it is done."""
    assert isinstance(came, Answered | Finished)
    return replace(world, channel=(*world.channel, Message(came, None)))


def object_to(world: World, command: str) -> World:
    """Object to a command that this guest must not be given, by what panicd was told of it."""
    changes = command != "collect"
    if changes and any(isinstance(entry, Opened | Decided | StepBegun) for entry in world.noted):
        raise ViolationError(f"{command} is given before it is on the disk")
    told = world.told
    if world.misread:
        return world
    if command in {"system_reset", "quit"}:
        knew = told.is_busy and not world.answered  # who was answered since goes by that
        if knew or world.answered == "busy":
            raise ViolationError(f"{command} cuts off what QEMU is known to be busy with: {told}")
    match command:
        case "system_reset" if not told.panicked:
            raise ViolationError(f"a guest that is known to be healthy is reset: {told}")
        case "quit" | "SIGTERM" | "SIGKILL" if not told.panicked:
            raise ViolationError(f"a guest that is known to be healthy is ended: {told}")
        case "stop" if not told.panicked:
            raise ViolationError(f"a guest that is known to be healthy is stopped: {told}")
        case "cont" if told.panicked and world.on_crash.action.value != "ignore":
            raise ViolationError("a panicked guest is let run")
        case "cont" if not told.panicked and not told.must_boot:
            raise ViolationError(f"a guest that was not reset is let run: {told}")
        case "collect" if not world.connected or world.on_crash.action is Action.DESTROY:
            pass  # a destroy goes on if QEMU does not say whether the guest has stopped
        case "dump" | "collect" if told.state.executes:
            raise ViolationError(f"{command} of a guest that runs: {told}")
        case _:
            pass
    if command == "cont" and told.panicked:
        number, count = world.conts
        count = count + 1 if number == told.number else 1
        if count > 1 + world.interruptions:
            raise ViolationError("a guest is let run twice after one panic")
        return replace(world, conts=(told.number, count))
    return world


# What may happen next.


def moves(world: World) -> Iterator[tuple[str, World]]:
    """Yield everything that may happen next, with the world after it."""
    yield from _panicd_moves(world)
    yield from _qemu_moves(world)
    yield from _outside_moves(world)


def _panicd_moves(world: World) -> Iterator[tuple[str, World]]:
    if world.noted or world.commits:
        yield "the journal writes", _write(world)
    if world.state is None:
        if world.alive:
            yield "panicd connects", _connect(world)
            incident = incident_of(world.entries)
            if incident is not None and took_evidence(incident):
                yield "panicd connects, and has lost evidence", _connect(world, lost=True)
        elif incident_of((*world.entries,)) is not None and not world.noted:
            yield "panicd finds that QEMU has ended", _adopt(world)
        return
    if world.channel:
        first, *rest = world.channel
        told = world.told if first.guest is None else first.guest
        following = replace(world, channel=tuple(rest), told=told)
        if isinstance(first.said, Answered) and len(first.said.answers) > 1:  # about its work
            following = replace(following, answered=_answered(first))
        if isinstance(first.said, WorkEvent) and not told.is_busy:
            following = replace(following, answered="idle")  # its events say so as well
        if isinstance(first.said, Event):
            yield f"panicd hears {type(first.said).__name__}", tell(following, Heard(first.said))
        else:
            yield "panicd is answered", tell(following, first.said)
    elif world.lost:
        yield "panicd sees the session's end", tell(replace(world, lost=False), Lost())
    elif world.departing:
        found = Departed(gone=not world.alive, cause=Cause.GONE)
        yield "panicd knows why it ended", tell(replace(world, departing=False), found)
    if world.timer is not None:
        timer = world.timer
        yield "the time is over", tell(replace(world, timer=None), Elapsed(timer))
    if world.work is not None:
        serial, what = world.work
        done = Finished(serial, StepResult(Outcome.DONE, what))
        yield f"the {what} is done", tell(replace(world, work=None), done)
    if world.watched and not world.alive and not world.gone_told:
        yield "panicd sees the process's end", tell(replace(world, gone_told=True), Gone())


def _qemu_moves(world: World) -> Iterator[tuple[str, World]]:
    if not world.alive:
        return
    if world.guest.stopping:
        stopped = replace(world.guest, state=RunState.GUEST_PANICKED, stopping=False)
        yield "QEMU stops the guest", _say(replace(world, guest=stopped), StopEvent(0.0))
    if world.commands:
        yield "QEMU deals with commands", _deal(world)
    if world.guest.job:
        yield "the job ends", _begin_job(world, goes_on=False)
    if world.guest.migrates:
        yield "the migration ends", _migrate(world, goes_on=False)


def _answered(message: Message) -> str:
    if message.guest is None:
        return "nothing"
    return "busy" if message.guest.is_busy else "idle"


def _outside_moves(world: World) -> Iterator[tuple[str, World]]:
    left, guest = world.left, world.guest
    if left.crashes and world.state is not None:
        fewer = replace(world, left=replace(left, crashes=left.crashes - 1))
        yield "panicd is killed", _kill_panicd(fewer)
    if left.cuts and world.connected:
        fewer = replace(world, left=replace(left, cuts=left.cuts - 1))
        yield "the connection is cut", _cut(fewer)
    if not world.alive:
        return
    if left.silences and world.connected and world.commands:
        fewer = replace(world, left=replace(left, silences=left.silences - 1))
        yield "an answer gets lost", _deal(fewer, answer_lost=True)
        yield "commands get lost", _lose(fewer)
    runs = guest.state is RunState.RUNNING and not guest.stopping
    if left.panics and runs:
        fewer = replace(world, left=replace(left, panics=left.panics - 1))
        yield "the guest panics", _panic(fewer)
    if left.deaths:
        fewer = replace(world, left=replace(left, deaths=left.deaths - 1))
        yield "QEMU dies", _die(fewer)
    if left.works and not guest.is_busy:
        fewer = replace(world, left=replace(left, works=left.works - 1))
        yield "a job begins", _begin_job(fewer, goes_on=True)
        yield "a migration begins", _migrate(fewer, goes_on=True)
    if left.foreign:
        fewer = replace(world, left=replace(left, foreign=left.foreign - 1))
        yield "others reset the guest", _execute(fewer, "system_reset")[0]
        if not runs and guest.state is not RunState.RUNNING:
            yield "others let the guest run", _execute(fewer, "cont")[0]


# How it happens.


def _say(world: World, event: Event) -> World:
    if not world.connected:
        return world
    return replace(world, channel=(*world.channel, Message(event, world.guest)))


def _panic(world: World) -> World:
    number = world.guest.number + 1
    guest = replace(world.guest, panicked=True, stopping=True, number=number)
    return _say(replace(world, guest=guest), GuestPanickedEvent(0.0, PanicAction.PAUSE))


def _begin_job(world: World, *, goes_on: bool) -> World:
    """A job begins, or else it ends."""
    world = replace(world, guest=replace(world.guest, job=goes_on))
    return _tell_work(world, JobStatusEvent(0.0, "job", "created" if goes_on else "null"))


def _migrate(world: World, *, goes_on: bool) -> World:
    """A migration begins, or else it is given up: the guest stays."""
    world = replace(world, guest=replace(world.guest, migrates=goes_on))
    return _tell_work(world, MigrationEvent(0.0, "setup" if goes_on else "cancelled"))


def _tell_work(world: World, event: Event) -> World:
    return _say(world, event) if world.follows else world


def _execute(world: World, name: str) -> tuple[World, object]:
    guest = world.guest
    match name:
        case "query-migrate":
            return world, {"status": "active"} if guest.migrates else {}
        case "query-block-jobs":
            return world, _Jobs([{"ready": False}] if guest.job else [])
        case "query-status":
            return world, {"status": guest.state.value}
        case "system_reset":
            state = guest.state if guest.state is RunState.RUNNING else RunState.PRELAUNCH
            runs = state is RunState.RUNNING
            reset = replace(guest, state=state, panicked=False, stopping=False, must_boot=not runs)
            world = replace(world, guest=reset)
            return _say(world, ResetEvent(0.0, guest=False, reason="host-qmp-system-reset")), {}
        case "cont" if guest.state is not RunState.RUNNING:
            running = replace(guest, state=RunState.RUNNING, must_boot=False, stopping=False)
            return _say(replace(world, guest=running), ResumeEvent(0.0)), {}
        case "stop" if guest.state is RunState.RUNNING:
            stopped = replace(guest, state=RunState.PAUSED, stopping=False)
            return _say(replace(world, guest=stopped), StopEvent(0.0)), {}
        case "quit":
            return _say(world, ShutdownEvent(0.0, guest=False, reason="host-qmp-quit")), {}
        case _:
            return world, {}


def _lose(world: World) -> World:
    """QEMU never sees some commands, and panicd does not wait for ever."""
    (serial, names), *rest = world.commands
    silence = Answered(serial, tuple(NoAnswer("no answer") for _ in names))
    interruptions = world.interruptions + 1
    world = replace(world, commands=tuple(rest), interruptions=interruptions)
    return replace(world, channel=(*world.channel, Message(silence, None)))


def _deal(world: World, *, answer_lost: bool = False) -> World:
    (serial, names), *rest = world.commands
    world = replace(world, commands=tuple(rest))
    answers: list[object] = []
    for name in names:
        # panicd's stop may meet a guest that was reset a moment before: it is paused then as the
        # panicked one would be, and nothing tells who was not there.
        late = name == "stop" and not world.guest.panicked
        world = replace(
            world,
            late=world.late or late,
        )
        world, answer = _execute(world, name)
        answers.append(answer)
    if answer_lost:
        world = _lose(replace(world, commands=((serial, names), *rest)))
    elif world.connected:
        answered = Answered(serial, tuple(map(_hashable, answers)))
        world = replace(world, channel=(*world.channel, Message(answered, world.guest)))
    return _die(world) if "quit" in names else world


class _Answer(dict[str, object]):
    """An answer that can be compared and kept, as a state is."""

    def __hash__(self) -> int:  # type: ignore[override]  # a dict has none
        return hash(tuple(sorted(self.items())))


class _Jobs(list[object]):
    """The same of a list."""

    def __hash__(self) -> int:  # type: ignore[override]  # a list has none
        return len(self)


def _hashable(answer: object) -> object:
    return _Answer(answer) if isinstance(answer, dict) else answer


def _die(world: World) -> World:
    dead = replace(world.guest, state=RunState.SHUTDOWN, stopping=False, job=False, migrates=False)
    return _cut(replace(world, alive=False, guest=dead))


def _cut(world: World) -> World:
    if not world.connected:
        return world
    answered = tuple(
        Message(
            Answered(serial, tuple(NoAnswer("the session ended", lost=True) for _ in names)), None
        )
        for serial, names in world.commands
    )
    # What was said is read before the end; what QEMU has not read yet, it never will.
    return replace(
        world,
        connected=False,
        lost=True,
        commands=(),
        channel=(*world.channel, *answered),
        interruptions=world.interruptions + 1,
    )


def _write(world: World) -> World:
    """Everything noted by the first commit that waits is on the disk."""
    (serial, count), *rest = world.commits or ((0, len(world.noted)),)
    written, noted = world.noted[:count], world.noted[count:]
    commits = tuple((each, max(0, before - count)) for each, before in rest)
    world = replace(world, entries=(*world.entries, *written), noted=noted, commits=commits)
    return world if world.state is None else tell(world, Durable(serial))


def _kill_panicd(world: World) -> World:
    """What it had in memory is gone; what it had sent may still be dealt with."""
    return replace(
        world,
        state=None,
        connected=False,
        interruptions=world.interruptions + 1,
        noted=(),
        commits=(),
        channel=(),
        timer=None,
        work=None,
        lost=False,
        watched=False,
        gone_told=False,
        departing=False,
    )


def _leave(world: World) -> World:
    """The session is over; what was noted is written before the next begins."""
    return replace(
        world,
        state=None,
        connected=False,
        channel=(),
        commands=(),
        timer=None,
        work=None,
        lost=False,
        watched=False,
        gone_told=False,
        departing=False,
        commits=(),
        entries=(*world.entries, *world.noted),
        noted=(),
    )


def _connect(world: World, *, lost: bool = False) -> World:
    # QEMU is done with what came by the last connection before it greets the next client.
    while world.commands:
        world = _deal(world)
        if not world.alive:
            return world
    guest = world.guest
    jobs = frozenset({"job"} if guest.job else ())
    work = Work(jobs, "active" if guest.migrates else "none") if world.follows else None
    vm = Vm(guest.state, CAPABILITY, process=world.process, work=work)
    incident = incident_of(world.entries)
    world = replace(world, connected=True, told=world.guest, state=State(), misread=world.late)
    if incident is not None and not world.answered:
        world = replace(world, answered="earlier")  # a command that is given again asks no more
    return tell(world, Attached(vm, incident, evidence_lost=lost))


def _adopt(world: World) -> World:
    incident = incident_of(world.entries)
    assert incident is not None
    world = replace(world, state=State(), told=world.guest, lost=False)
    return tell(world, Adopted(incident, Plight.ENDED))
