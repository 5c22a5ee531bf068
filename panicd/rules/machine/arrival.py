"""Finding a domain and leaving it: after a crash, a lost session or QEMU's end."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from panicd.rules.capability import Armed, Capability, run_by_libvirt, with_plugged
from panicd.rules.ending import Cause
from panicd.rules.incident import Ending, Outcome, Source, StepResult
from panicd.rules.incident import State as IncidentState
from panicd.rules.machine import deciding, effects, hearing
from panicd.rules.machine.inputs import Adopted, Attached, Departed, Plight
from panicd.rules.machine.state import (
    AskingState,
    Begun,
    Departing,
    Left,
    Relaunching,
    SeeingEnd,
    Stage,
    Then,
)
from panicd.rules.machine.turn import Turn
from panicd.rules.machine.vm import Vm, follow, with_capability
from panicd.rules.plan import Kill, Terminate
from panicd.rules.qapi import GuestPanickedEvent, PanicAction, PanicInformation, RunState
from panicd.rules.recovery import End, Found, GiveUp, GoOn, Redecide, Stay, recover

NOT_BEGUN: Final = StepResult(Outcome.SKIPPED, "panicd came no further")
"""Result of a step that was noted but not carried out: it leaves no other trace."""
UNKNOWN_QEMU: Final = Capability(version=(0, 0, 0))


def attached(turn: Turn, _phase: Begun, came: Attached) -> None:
    """Go on with the incident that waits for this domain, and check for a panic."""
    turn.vm, turn.incident, turn.deferred = came.vm, came.incident, came.heard
    for heard in came.heard:
        turn.vm = follow(turn.vm, heard.event)
    turn.unseen = turn.stale = True
    take_up_policy(turn)
    incident = turn.incident
    if incident is None:
        turn.rest()
        return
    began_on = incident.opened.process
    # Behind a proxy neither process is known; then the VM's identity has to do.
    same = began_on == came.vm.process or not (began_on and came.vm.process)
    capability = came.vm.capability
    version, by_libvirt = capability.behaves_like, capability.by_api
    found = Found(came.vm.run_state, same, version, by_libvirt=by_libvirt)
    go_on_as_found(turn, replace(found, evidence_lost=came.evidence_lost))


def take_up_policy(turn: Turn) -> None:
    """Update the VM's capability from the moment: libvirt's part, and a plugged device."""
    vm, moment = turn.known, turn.moment
    capability = run_by_libvirt(vm.capability, moment.libvirt)
    if moment.plugged is not None:
        capability = with_plugged(capability, plugged=moment.plugged)
    turn.vm = with_capability(vm, capability)


def adopted(turn: Turn, _phase: Begun, came: Adopted) -> None:
    """Take up an incident without a connection."""
    incident = turn.incident = came.incident
    ended = came.plight is not Plight.HANGS
    turn.alone = turn.departed = True
    turn.vm = Vm(
        RunState.UNKNOWN, UNKNOWN_QEMU, process=incident.opened.process, ended=True, gone=ended
    )
    match came.plight:
        case Plight.ENDED:
            go_on_as_found(turn, Found(None, same_process=True, version=UNKNOWN_QEMU.version))
        case Plight.HANGS:
            _go_on_with_hung(turn)
        case Plight.RETURNED:
            if (index := incident.step_in_progress) is not None:
                turn.done(index)
            turn.close(Ending.RELAUNCHED)
        case Plight.OVERDUE:
            _give_up_return(turn)


def _go_on_with_hung(turn: Turn) -> None:
    """Go on with ending a QEMU whose monitor does not answer, if its end had begun.

    The journal must say that QEMU did not end on ``quit`` and a signal was due. Before a signal is
    due, another client may just hold the silent monitor, and the guest may be anyone's.
    """
    last = max(turn.open.steps, default=None)
    escalates = turn.open.state is IncidentState.ACTING and last is not None
    if (
        turn.moment.dry_run
        or not escalates
        or not isinstance(turn.step(last or 0), Terminate | Kill)
    ):
        turn.rest()
        return
    turn.say("warning", "QEMU does not answer, so panicd goes on ending it")
    assert last is not None
    hearing.begin_plan(turn)
    deciding.execute(turn, last)


def _give_up_return(turn: Turn) -> None:
    """Fail the relaunch: the domain did not come back in time."""
    index = turn.open.step_in_progress
    if index is None:
        turn.rest()
        return
    turn.end(index, StepResult(Outcome.FAILED, "the domain did not come back in time"))
    turn.settle(IncidentState.FAILED)


def go_on_as_found(turn: Turn, found: Found) -> None:
    """Go on with the open incident, according to the state of its domain."""
    incident = turn.open
    turn.unbroken = found.proves_panic
    recovery = recover(incident, found)
    turn.say(
        "info",
        "open incident found again",
        state=incident.state,
        run_state=found.run_state,
        recovery=type(recovery).__name__,
    )
    match recovery:
        case GoOn() | GiveUp() if turn.moment.dry_run:
            turn.rest()
        case GiveUp() if turn.alone:  # only a present QEMU has lost an answer
            turn.rest()
        case GiveUp(index=index):
            deciding.give_up_step(turn, index)
        case GoOn(index=index):
            hearing.begin_plan(turn)
            deciding.go_on(turn, index)
        case Redecide():
            deciding.decide_now(turn, found.run_state)
        case End(ending=Ending.FOREIGN_RESET):
            deciding.reset_by_others(turn)
        case End(ending=ending):
            unfinished = incident.step_in_progress
            if ending is Ending.RELAUNCHED and unfinished is not None:
                turn.done(unfinished)
            turn.close(ending)
        case Stay():
            turn.rest()


# The session's end.


def depart(turn: Turn) -> None:
    """Find out why the session ended."""
    turn.enter(Departing())
    turn.emit(effects.FindCause())


def departed(turn: Turn, _phase: Departing, found: Departed) -> None:
    """Apply the cause of the session's end to an open incident."""
    vm = turn.known
    turn.vm = replace(vm, ended=True, gone=found.gone and bool(vm.process))
    turn.departed = True
    turn.say("info", "domain ended" if found.gone else "connection ended", cause=found.cause)
    turn.rest()
    if turn.incident is None or not found.gone:
        return
    by_panic = found.cause is Cause.GUEST_PANIC or vm.capability.armed is not Armed.YES
    turn.observed(f"QEMU ended: {found.cause}")
    version = vm.capability.behaves_like
    go_on_as_found(turn, Found(None, same_process=True, version=version, by_panic=by_panic))


def leave(turn: Turn, problem: str = "") -> None:
    """Look after this domain no more: an open incident waits for the next driver."""
    phase = turn.phase
    if isinstance(phase, Relaunching) and phase.stage is Stage.RECORDING:
        turn.end(phase.index, NOT_BEGUN)
    if turn.incident is None:
        _put_on_record(turn)
    if turn.incident is not None:
        turn.note_repeats()
    if turn.has_turn:
        turn.has_turn = False
        turn.emit(effects.LeaveTurn())
    if turn.granting is not None:
        turn.answer(f"it is not known whether it was done: {problem or LOST}")
    for asked in turn.requests:
        turn.emit(effects.Answer(asked.request, LOST))
    turn.requests = ()
    turn.enter(Left())
    turn.emit(effects.Leave(problem))


def _put_on_record(turn: Turn) -> None:
    """Open an incident for panics that were heard and not yet dealt with.

    The domain's next driver deals with them. Panics that let the guest run are left out: the next
    driver would take such a guest for a resumed one.
    """
    for information, count in _heard_only(turn):
        is_first = turn.incident is None
        if is_first:
            turn.open_incident(Source.EVENT, information)
        turn.repeats += count - is_first


def _heard_only(turn: Turn) -> Iterator[tuple[PanicInformation | None, int]]:
    phase = turn.phase
    if isinstance(phase, SeeingEnd) or (isinstance(phase, AskingState) and phase.then is Then.OPEN):
        yield phase.information, phase.count
    for heard in turn.deferred:
        event = heard.event
        if not isinstance(event, GuestPanickedEvent) or hearing.announced_twice(turn, event):
            continue
        if event.action is not PanicAction.RUN:
            yield event.information, heard.count


LOST: Final = "the domain's monitor was lost"
