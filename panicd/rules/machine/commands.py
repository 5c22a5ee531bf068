"""Steps whose command has an event of its own: ``system_reset``, ``cont``.

Each function returns the step's result, the plan's course, or None while the step waits.
"""

from dataclasses import replace
from typing import Final

from panicd.rules.machine.inputs import Answered, NoAnswer, Refused, Told
from panicd.rules.machine.results import End, done, failed, look, unknown
from panicd.rules.machine.state import (
    Giving,
    Stage,
)
from panicd.rules.machine.turn import ANSWER_TIMEOUT, QUERY_STATUS, Turn
from panicd.rules.plan import (
    AnyStep,
    SystemReset,
)
from panicd.rules.qapi import RunState

RESUME_FOLLOWS: Final = 0.05  # seconds after the answer to ``cont``; RESUME mostly comes before it
LIBVIRT_PATIENCE: Final = 35.0  # seconds; a job of libvirt's own lasts 30 at most


def _events(turn: Turn, step: AnyStep) -> int:
    return turn.known.resets if isinstance(step, SystemReset) else turn.known.resumes


def giving_durable(turn: Turn, phase: Giving, _came: object = None) -> End:
    """Give the command: the journal has its step."""
    if phase.stage is not Stage.RECORDING:
        return None
    if course := look(turn, phase.index):
        return course
    step, timeout = turn.step(phase.index), turn.step(phase.index).timeout
    turn.enter(Giving(phase.index, Stage.GIVEN, phase.by_libvirt, _events(turn, step)))
    is_reset = isinstance(step, SystemReset)
    if phase.by_libvirt:
        verb = "reset" if is_reset else "resume"
        turn.tell_libvirt(verb, LIBVIRT_PATIENCE)
    else:
        turn.send([("system_reset" if is_reset else "cont", ())], timeout, acts=True)
    return None


def giving_heard(turn: Turn, phase: Giving, _came: object = None) -> End:
    """Check whether the command's event has come."""
    if phase.stage is Stage.RECORDING:
        return None
    index, step, vm = phase.index, turn.step(phase.index), turn.known
    if _events(turn, step) > phase.before:
        if isinstance(step, SystemReset):
            turn.base = (vm.resets, turn.base[1])
        return done(index)
    if isinstance(step, SystemReset) and vm.shutdown is not None and phase.stage is Stage.ANSWERED:
        turn.vm = replace(vm, capability=replace(vm.capability, reboot_is_shutdown=True))
        return failed(index, "QEMU ends instead of resetting")
    if vm.ended and phase.stage is Stage.ANSWERED:
        return unknown(index, phase.doubt or "the session ended before it was seen")
    return None


def giving_answered(turn: Turn, phase: Giving, answered: Answered) -> End:
    """Take QEMU's answer to the command, or to the question after it."""
    (answer,) = answered.answers
    if phase.stage is Stage.CONFIRMING:
        return _confirmed(turn, phase, answer)
    if isinstance(answer, Refused):
        return failed(phase.index, answer.text)
    return _given(turn, phase, answer.text if isinstance(answer, NoAnswer) else "")


def _given(turn: Turn, phase: Giving, doubt: str) -> End:
    """Go on waiting for the event, within its time limit."""
    step = turn.step(phase.index)
    answered = turn.enter(replace(phase, stage=Stage.ANSWERED, doubt=doubt))
    turn.wake(step.timeout if isinstance(step, SystemReset) else RESUME_FOLLOWS)
    return giving_heard(turn, answered)


def giving_told(turn: Turn, phase: Giving, told: Told) -> End:
    """Take libvirt's answer, or its silence."""
    match told.how:
        case "done":
            return _given(turn, phase, "")
        case "silent":
            return _given(turn, phase, told.text)
        case "refused":
            return failed(phase.index, told.text)
        case _:
            what = "reset" if isinstance(turn.step(phase.index), SystemReset) else "resume"
            if course := look(turn, phase.index):
                return course
            turn.say("warning", "done without libvirt", what=what, why=told.text)
            turn.enter(Giving(phase.index, Stage.RECORDING, by_libvirt=False))
            turn.commit()
            return None


def giving_elapsed(turn: Turn, phase: Giving, _came: object = None) -> End:
    """Handle an event that did not come in time."""
    if phase.stage is not Stage.ANSWERED:
        return None
    if phase.doubt or turn.known.ended:
        return unknown(phase.index, phase.doubt or "the session ended before it was seen")
    if isinstance(turn.step(phase.index), SystemReset):
        return failed(phase.index, "no RESET was seen")
    # RESUME comes before the reply. A guest may panic again at once. So the run state
    # guest-panicked after RESUME is a new panic, not a failed cont.
    turn.enter(Giving(phase.index, Stage.CONFIRMING, phase.by_libvirt, phase.before))
    turn.send([QUERY_STATUS], ANSWER_TIMEOUT)
    return None


def _confirmed(turn: Turn, phase: Giving, answer: object) -> End:
    if isinstance(answer, NoAnswer):
        return unknown(phase.index, answer.text)
    if isinstance(answer, Refused):
        return failed(phase.index, answer.text)
    turn.learn_status(answer)
    if turn.known.run_state is RunState.RUNNING:
        return done(phase.index)
    return failed(phase.index, f"run state {turn.known.run_state} after cont")
