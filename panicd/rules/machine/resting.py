"""Events while nothing is under way: panics, others' doings, and elapsed time."""

from typing import Final

from panicd.rules.incident import (
    Acknowledged,
    Ending,
    Outcome,
    Source,
    StepResult,
)
from panicd.rules.incident import (
    Asked as AskedEntry,
)
from panicd.rules.incident import State as IncidentState
from panicd.rules.machine import deciding, ignoring
from panicd.rules.machine.hearing import announced_twice, panic_waits
from panicd.rules.machine.inputs import (
    Answered,
    Asked,
    Elapsed,
    Heard,
    LookAgain,
    Lost,
    NoAnswer,
    Refused,
)
from panicd.rules.machine.state import AskingState, Resting, SeeingEnd, Then
from panicd.rules.machine.turn import BUSY_TIMEOUT, Turn
from panicd.rules.on_crash import Action
from panicd.rules.operation import OperationKind
from panicd.rules.policy import ImpossibleError, Reason, decide_for_operator
from panicd.rules.qapi import (
    GuestCrashloadedEvent,
    GuestPanickedEvent,
    GuestPvshutdownEvent,
    PanicAction,
    PanicInformation,
    ResetEvent,
    ResumeEvent,
    RunState,
    ShutdownEvent,
    StopEvent,
)

ARRIVAL_CHECK: Final = 1.0  # seconds between two checks for a migrated guest
ACTED_ON: Final = frozenset(
    {
        IncidentState.DETECTED,  # the guest's fate since is unknown
        IncidentState.PRESERVED,
        IncidentState.RUNNING_ON,
        IncidentState.FAILED,
        IncidentState.RESET,
    }
)
LOOK_AFTER: Final[dict[IncidentState, float]] = {  # seconds without an event
    IncidentState.PRESERVED: 5.0,  # it may have been migrated away
    IncidentState.FAILED: 5.0,
    IncidentState.RESET: 5.0,
    IncidentState.RUNNING_ON: 60.0,  # an ignored panic that did not come again is over
}
# QAPI ShutdownCause (4.0 and later): how a guest ends by itself. With reboot=shutdown a reset does.
_ENDED_ITSELF: Final = {
    "guest-shutdown": Ending.GUEST_SHUTDOWN,
    "guest-reset": Ending.GUEST_RESET,
}


def take(turn: Turn, heard: Heard) -> None:
    """Deal with an event of a guest that panicd is not acting on."""
    event = heard.event
    if announced_twice(turn, event):
        return
    if isinstance(event, GuestCrashloadedEvent):
        _crashloaded(turn, event)
        return
    incident = turn.incident
    if incident is not None and incident.runs_unproven:
        if isinstance(event, GuestPanickedEvent):  # new: it may have reset itself unseen
            turn.close(Ending.RAN_ON)
        elif isinstance(event, ResumeEvent):
            return
    elif incident is not None and incident.watched_until is not None and _watched(turn, heard):
        return
    _heard(turn, heard)


def _heard(turn: Turn, heard: Heard) -> None:
    match heard.event:
        case GuestPanickedEvent() as event:
            _panicked(turn, event, heard.count)
        case ResumeEvent():
            _resumed(turn)
        case ResetEvent(guest=guest):
            _reset(turn, by_guest=guest)
        case StopEvent():
            deciding.ask_state(turn, AskingState(Then.TELL_STOP))
        case ShutdownEvent(reason=reason):
            turn.observed(f"shutdown, {reason or 'no reason given'}")
        case GuestPvshutdownEvent():
            _shuts_down(turn)
        case _:
            pass


# Panics.


def _panicked(turn: Turn, event: GuestPanickedEvent, count: int) -> None:
    if turn.incident is not None and turn.incident.state is IncidentState.RESET:
        turn.close(Ending.FOREIGN_RESET)  # a newly started kernel panics
    incident = turn.incident
    if incident is None:
        _first_panic(turn, event, count)
        return
    turn.repeat(count)
    turn.commit()
    if incident.state is not IncidentState.RUNNING_ON or turn.known.has_gone:
        return
    if _floods(turn, count) and ignoring.stop_flood(turn):
        return
    stops = turn.known.run_state.executes or turn.known.run_state is RunState.GUEST_PANICKED
    if event.action is PanicAction.PAUSE and stops:
        ignoring.ignore_once_more(turn)


def _first_panic(turn: Turn, event: GuestPanickedEvent, count: int) -> None:
    state = turn.known.run_state
    match event.action:
        case PanicAction.PAUSE if state.executes:
            open_panic(turn, event.information, RunState.GUEST_PANICKED, count)
        case PanicAction.PAUSE | PanicAction.RUN:
            open_panic(turn, event.information, state, count)
        case _ if turn.known.ended:
            open_panic(turn, event.information, None, count)
        case _:
            turn.enter(SeeingEnd(event.information, count))
            turn.wake(turn.moment.policy.timeouts.stop)


def open_panic(
    turn: Turn, information: PanicInformation | None, run_state: RunState | None, count: int
) -> None:
    """Open an incident for a panic; further panics are repeats of the first."""
    deciding.open_and_decide(turn, Source.EVENT, information, run_state)
    if count > 1 and turn.incident is not None:
        turn.repeat(count - 1)


def _floods(turn: Turn, count: int) -> bool:
    """Count an ignored guest's panics; return whether they exceed the limit."""
    flood, now = turn.moment.policy.flood, turn.moment.ticks
    if not turn.flood or now - turn.flood_began > flood.window:
        turn.flood, turn.flood_began = 0, now
    turn.flood += count
    return flood.then is not Action.IGNORE and turn.flood > flood.max


def seen_end(turn: Turn, phase: SeeingEnd, _came: Lost) -> None:
    """Take QEMU's end with the panic, as announced."""
    open_panic(turn, phase.information, None, phase.count)


def not_ended(turn: Turn, phase: SeeingEnd, _came: Elapsed) -> None:
    """Ask for the run state: QEMU did not end as announced."""
    deciding.ask_state(turn, AskingState(Then.OPEN, phase.information, phase.count))


def _ends_slowly(turn: Turn, phase: AskingState, answer: NoAnswer) -> None:
    """Handle a silent QEMU that announced its end: it is ending, perhaps slowly."""
    if answer.lost:
        open_panic(turn, phase.information, None, phase.count)
        return
    turn.enter(SeeingEnd(phase.information, phase.count))
    turn.wake(turn.moment.policy.timeouts.stop)


# Others' doings.


def _resumed(turn: Turn) -> None:
    if turn.incident is None:
        turn.observed("guest resumed")
    elif turn.incident.state is IncidentState.RESET:
        turn.close(Ending.FOREIGN_RESET)
    elif turn.incident.state is not IncidentState.RUNNING_ON:
        deciding.stop_again(turn)


def _reset(turn: Turn, *, by_guest: bool) -> None:
    if turn.incident is not None and by_guest:
        turn.close(Ending.GUEST_RESET)
    elif turn.incident is not None:
        deciding.reset_by_others(turn)
    elif not by_guest:  # a guest can reset itself endlessly: not logged
        turn.observed("guest reset")


# A guest that handles its panic itself.


def _shuts_down(turn: Turn) -> None:
    """Note once in an incident that the guest shuts down; a flood adds nothing."""
    incident = turn.incident.id if turn.incident is not None else ""
    if not incident or incident != turn.shutting_in:
        turn.observed("guest shuts itself down, and says so (pvpanic)")
    turn.shutting_in = incident


def _crashloaded(turn: Turn, event: GuestCrashloadedEvent) -> None:
    """Follow a guest that handles its panic by kdump; a flood adds nothing."""
    if turn.incident is None:
        deciding.open_and_decide(turn, Source.KDUMP, event.information, turn.known.run_state)
    elif turn.incident.id != turn.crashloaded_in:
        turn.observed("guest handles its panic itself (kdump)")
    if turn.incident is not None:
        turn.crashloaded_in = turn.incident.id


def _watched(turn: Turn, heard: Heard) -> bool:
    """Deal with an event in a guest's own time; return whether all is done."""
    match heard.event:
        case GuestPanickedEvent(action=action):
            turn.repeat(heard.count)
            turn.commit()
            if action is PanicAction.PAUSE:
                end_watch(turn, "it is stopped by a panic again")
        case ResetEvent(guest=guest, reason=reason):
            # Before QEMU 4.0 nothing tells who reset it: panicd assumes the guest.
            by_guest = guest or not reason
            if by_guest:
                _close_watch(turn, Ending.GUEST_RESET)
            else:
                turn.stale = True
                deciding.reset_by_others(turn)
        case ShutdownEvent(reason=reason) if reason in _ENDED_ITSELF:
            _close_watch(turn, _ENDED_ITSELF[reason], f"shutdown, {reason}")
        case StopEvent():
            deciding.ask_state(turn, AskingState(Then.WATCHED_STOP))
        case ResumeEvent():
            pass  # somebody had paused it
        case _:
            return False
    return True


def end_watch(turn: Turn, why: str) -> None:
    """Apply the policy to a guest that did not reset itself."""
    turn.stale = True  # a panic is to stop the guest again
    deciding.ask_state(turn, AskingState(Then.WATCH_ENDED, why=why))


def _close_watch(turn: Turn, ending: Ending, what: str = "") -> None:
    if what:
        turn.observed(what)
    turn.stale = True
    turn.close(ending)


def _watch_ended(turn: Turn, why: str) -> None:
    """Apply the policy, or leave the guest alone.

    panicd leaves a running guest alone if it did not watch all the time: the guest may have reset
    itself unseen, and be healthy.
    """
    index = turn.open.step_in_progress
    assert index is not None, "it is watched"
    state = turn.known.run_state
    if turn.unbroken or state is RunState.GUEST_PANICKED:
        turn.end(index, StepResult(Outcome.FAILED, why))
        deciding.decide_now(turn, state)
        return
    unproven = "panicd did not see everything meanwhile, and the guest may have reset itself"
    turn.end(index, StepResult(Outcome.FAILED, f"{why}; {unproven}"))
    turn.settle(IncidentState.FAILED)


# Elapsed time.


def arm_look(turn: Turn) -> None:
    """Arm a timer for a look at what no event reports."""
    incident, vm = turn.incident, turn.known
    if incident is not None and incident.watched_until is not None:
        if turn.watched[0] != incident.watched_until:
            left = max(0.0, incident.watched_until - turn.moment.now)
            turn.watched = (incident.watched_until, turn.moment.ticks + left)
        turn.wake(max(0.0, turn.watched[1] - turn.moment.ticks))
    elif incident is not None and incident.state in LOOK_AFTER:
        turn.wake(LOOK_AFTER[incident.state])
    elif incident is None and vm.run_state is RunState.INMIGRATE:
        turn.wake(ARRIVAL_CHECK)


def look_again(turn: Turn, _phase: Resting, _came: LookAgain) -> None:
    """Look for changes that no event reported."""
    deciding.ask_state(turn, AskingState(Then.LOOK), BUSY_TIMEOUT)


def elapsed(turn: Turn, _phase: Resting, _came: Elapsed) -> None:
    """Handle the timer: no event came meanwhile."""
    incident = turn.incident
    if incident is not None and incident.watched_until is not None:
        end_watch(turn, "no reset was seen in its time")
    elif incident is not None and incident.state is IncidentState.RUNNING_ON:
        turn.close(Ending.RAN_ON)
    elif not turn.moment.silent:  # a silent QEMU would not answer
        deciding.ask_state(turn, AskingState(Then.LOOK), BUSY_TIMEOUT)


def see_panic(turn: Turn) -> None:
    """Open an incident for a panicked guest without one."""
    vm = turn.known
    panicked = vm.run_state is RunState.GUEST_PANICKED and not vm.reset_since_panic
    waits = turn.put_off is not None or panic_waits(turn)
    if panicked and turn.incident is None and not waits and not vm.ended:
        deciding.open_and_decide(turn, Source.RECONCILIATION, None, RunState.GUEST_PANICKED)


def _see_missed_panic(turn: Turn) -> None:
    """Check whether a panic stopped the guest: its event may be older than the session."""
    ignored = turn.incident is not None and turn.incident.state is IncidentState.RUNNING_ON
    if ignored and turn.known.run_state is RunState.GUEST_PANICKED and not panic_waits(turn):
        _panicked(turn, GuestPanickedEvent(turn.moment.now, PanicAction.PAUSE), 1)
    else:
        see_panic(turn)


def _looked(turn: Turn) -> None:
    if turn.incident is None:
        turn.rest()
        see_panic(turn)
    elif turn.known.run_state is RunState.POSTMIGRATE:
        turn.close(Ending.MIGRATED)
    else:
        turn.note_repeats()
        turn.commit()  # notes that could not be written before
        turn.rest()


# Answers.

_MAY_BE_SILENT: Final = {Then.LOOK, Then.HOLD_ENDED, Then.OBEY}
"""Uses for which the last known run state will do."""


def state_answered(turn: Turn, phase: AskingState, answered: Answered) -> str | None:
    """Take QEMU's run state, or its silence.

    Returns:
        Why panicd gives up the connection; None: it keeps it.
    """
    (answer,) = answered.answers
    if isinstance(answer, NoAnswer) and phase.then is Then.LOOK and answer.lost:
        turn.rest()  # ``departed`` handles the session's end
        return None
    if isinstance(answer, NoAnswer) and phase.then is Then.OPEN:
        _ends_slowly(turn, phase, answer)
        return None
    if isinstance(answer, NoAnswer) and phase.then is Then.RESET:
        deciding.settle_reset(turn)
        return None if answer.lost else answer.text
    if isinstance(answer, Refused | NoAnswer):
        silent = isinstance(answer, NoAnswer) and not answer.lost
        if not (silent and phase.then in _MAY_BE_SILENT):
            return answer.text
    else:
        turn.learn_status(answer)
    state = turn.known.run_state
    match phase.then:
        case Then.OPEN:
            open_panic(turn, phase.information, state, phase.count)
        case Then.LOOK:
            _looked(turn)
        case Then.HOLD_ENDED:
            deciding.decide_now(turn, state)
        case Then.WATCH_ENDED:
            _watch_ended(turn, phase.why)
        case Then.NO_GRACE:
            deciding.decide_now(turn, state, Reason.NO_GRACE)
        case Then.OBEY:
            _obey(turn)
        case Then.RESET:
            deciding.reset_answered(turn)
        case Then.TELL_STOP:
            turn.observed(f"guest stopped, run state {state}")
            turn.rest()
            _see_missed_panic(turn)
        case Then.WATCHED_STOP if state is RunState.SHUTDOWN:
            _close_watch(turn, Ending.GUEST_SHUTDOWN, "guest stopped, run state shutdown")
        case Then.WATCHED_STOP:
            turn.observed(f"guest stopped, run state {state}")
            turn.rest()
    return None


# Operators.


def grant(turn: Turn, asked: Asked) -> None:
    """Grant an operator's request, unless the domain's state has overtaken it."""
    turn.granting = asked
    operation, incident = asked.operation, turn.incident
    if incident is None:
        turn.answer("the domain has no open incident")
    elif incident.id != asked.about:
        turn.answer("the guest panicked after this was asked for")
    elif operation.kind is OperationKind.ACK:
        turn.note(Acknowledged(operation.at, operation.uid, operation.why, operation.user))
        turn.commit()
        turn.answer("")
    elif incident.state not in ACTED_ON and incident.watched_until is None:
        turn.answer(f"its incident is {incident.state}")
    else:
        deciding.ask_state(turn, AskingState(Then.OBEY), BUSY_TIMEOUT)


def _obey(turn: Turn) -> None:
    asked, policy = turn.granting, turn.moment.policy
    assert asked is not None
    if turn.known.resets > asked.resets:  # it may be healthy, unseen by the operator
        turn.answer("the guest was reset after this was asked for")
        turn.rest()
        return
    situation = turn.situation(turn.known.run_state)
    try:
        decision = decide_for_operator(policy, turn.known.capability, situation, asked.action)
    except ImpossibleError as impossible:
        turn.answer(str(impossible))
        turn.rest()
        return
    if decision.coredump and turn.open.dumped:
        action = decision.wanted.action
        turn.answer(f"the incident has a dump, {turn.open.dumped}: ask for {action} alone")
        turn.rest()
        return
    operation = asked.operation
    what = f"{operation.kind} {operation.detail}".strip()
    turn.note(AskedEntry(operation.at, operation.uid, what, operation.why, operation.user))
    deciding.carry_out(turn, decision, situation, asked_for=True)
