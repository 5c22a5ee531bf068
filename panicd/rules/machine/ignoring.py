"""A guest whose panics are ignored: it runs on each time, until it panics too often."""

from panicd.rules.machine import deciding, halting, hearing
from panicd.rules.machine.commands import LIBVIRT_PATIENCE
from panicd.rules.machine.halting import STOP_FOLLOWS
from panicd.rules.machine.inputs import Answered, Elapsed, NoAnswer, Refused, Told
from panicd.rules.machine.results import Course, overtaken
from panicd.rules.machine.state import RunningAgain, Stage
from panicd.rules.machine.turn import REPEATS_EVERY, Turn
from panicd.rules.policy import end_flood, ignore_again
from panicd.rules.qapi import RunState


def stop_flood(turn: Turn) -> bool:
    """Stop a guest with too many ignored panics, unless held; return whether it does."""
    turn.note_repeats()
    situation = turn.situation(turn.known.run_state)
    ignored = turn.open.decision
    assert ignored is not None
    if not situation.held:
        deciding.carry_out(turn, end_flood(ignored), situation)
    return not situation.held


def ignore_once_more(turn: Turn) -> None:
    """Let a guest run again after an ignored panic that stopped it.

    The journal gets one entry in ``REPEATS_EVERY`` seconds, as for the panics themselves. In
    between, the decision on record stands for later panics.
    """
    moment, ignored = turn.moment, turn.open.decision
    assert ignored is not None
    situation = turn.situation(RunState.GUEST_PANICKED)
    capability = turn.known.capability
    decision = ignore_again(moment.policy, capability, situation, ignored, now=moment.now)
    if decision == ignored and 0 <= moment.now - turn.ignored_at < REPEATS_EVERY:
        hearing.begin_plan(turn)
        turn.enter(RunningAgain(Stage.WAITING))
        turn.wake(STOP_FOLLOWS)
        return
    turn.ignored_at = moment.now
    deciding.carry_out(turn, decision, situation)


def running_again_heard(turn: Turn, phase: RunningAgain, _came: object) -> None:
    """Check whether the guest has stopped, or runs."""
    vm = turn.known
    if vm.ended or overtaken(turn) is Course.RESET_BY_OTHERS:
        turn.rest()
        if not vm.ended:
            deciding.reset_by_others(turn)
    elif phase.stage is Stage.WAITING and not vm.run_state.executes:
        turn.enter(RunningAgain(Stage.ASKING))
        halting.ask_quiet(turn)
    elif phase.stage is Stage.GIVEN and overtaken(turn) is not None:
        turn.rest()


def running_again_answered(turn: Turn, phase: RunningAgain, answered: Answered) -> None:
    """Take QEMU's answer about its work, or to ``cont``."""
    if phase.stage is Stage.ASKING:
        busy = halting.busy_with(turn, answered)
        if not busy and turn.known.run_state is RunState.GUEST_PANICKED:
            turn.enter(RunningAgain(Stage.GIVEN))
            if turn.known.capability.resumes_by_libvirt:
                turn.tell_libvirt("resume", LIBVIRT_PATIENCE)
            else:
                turn.send([("cont", ())], turn.moment.policy.timeouts.resume, acts=True)
            return
    elif not isinstance(answered.answers[0], Refused | NoAnswer):
        turn.rest()
        return
    _ignore_noted(turn)


def running_again_told(turn: Turn, _phase: RunningAgain, told: Told) -> None:
    """Take libvirt's answer: the guest runs, or not."""
    if told.how == "done":
        turn.rest()
    else:
        _ignore_noted(turn)


def running_again_elapsed(turn: Turn, phase: RunningAgain, _came: Elapsed) -> None:
    """Handle a STOP that did not come in time."""
    if phase.stage is Stage.WAITING:
        _ignore_noted(turn)


def _ignore_noted(turn: Turn) -> None:
    """Note the decision, and go on a step at a time: not all is well."""
    ignored = turn.open.decision
    assert ignored is not None
    turn.ignored_at = turn.moment.now
    deciding.carry_out(turn, ignored, turn.situation(turn.known.run_state))
