"""Decides about an incident, and follows up its plan's course."""

from dataclasses import replace
from typing import Final

from panicd.rules.capability import PanicSetting
from panicd.rules.incident import Ending, Enforced, Outcome, Source, StepResult
from panicd.rules.incident import State as IncidentState
from panicd.rules.machine import effects, hearing, steps
from panicd.rules.machine.inputs import Answered, Durable, NoAnswer, Refused
from panicd.rules.machine.results import TAKES_ITS_TIME, Came, Course, End, cut_off, overtaken
from panicd.rules.machine.state import (
    AskingState,
    AwaitingTurn,
    Interrupted,
    SettingPanic,
    Stage,
    StoppingAgain,
    Then,
)
from panicd.rules.machine.turn import ANSWER_TIMEOUT, QUERY_STATUS, Turn
from panicd.rules.on_crash import Action
from panicd.rules.plan import Dump, OnFailure, SystemReset, make_plan
from panicd.rules.policy import (
    DESTRUCTIVE,
    Decision,
    Reason,
    Situation,
    decide,
    fall_back,
    panic_setting,
)
from panicd.rules.qapi import PanicInformation, RunState
from panicd.rules.recovery import Found

ENFORCED_AT_MOST: Final = 3  # times panicd stops a guest again in one incident
UNKNOWN_WHETHER: Final = "panicd does not know whether it was done: the incident is still open"
GIVEN_UP: Final = "panicd began it again and again, and never learned how it ended"
_AFTER_FAILURE: Final = {
    OnFailure.FALL_BACK: Course.FALL_BACK,
    OnFailure.PRESERVE: Course.PRESERVE,
}
_STOPPED: Final = {RunState.PAUSED, RunState.GUEST_PANICKED}  # or it panicked once more
_TO_STAY_STOPPED: Final = {Action.PRESERVE, Action.DESTROY, Action.RESTART}


# Deciding.


def open_and_decide(
    turn: Turn, source: Source, information: PanicInformation | None, run_state: RunState | None
) -> None:
    """Open an incident and respond to it.

    Args:
        turn: the step in the making.
        source: how the panic became known.
        information: the panic's payload.
        run_state: the guest's state after the panic; None: QEMU ends.
    """
    turn.open_incident(source, information)
    turn.unbroken = source is not Source.RECONCILIATION or proves_panic(turn, run_state)
    decide_now(turn, run_state)


def decide_now(turn: Turn, run_state: RunState | None, own_time: Reason | None = None) -> None:
    """Decide about the open incident, and begin its plan.

    Args:
        turn: the step in the making.
        run_state: the guest's; None: QEMU is gone.
        own_time: why the guest gets no time of its own; None: as the incident tells.
    """
    situation = turn.situation(run_state)
    situation = replace(situation, own_time=own_time) if own_time else situation
    moment = turn.moment
    decision = decide(moment.policy, turn.known.capability, situation, now=moment.now)
    carry_out(turn, decision, situation)


def carry_out(
    turn: Turn, decision: Decision, situation: Situation, *, asked_for: bool = False
) -> None:
    """Note a decision with its plan, and begin the plan.

    Args:
        turn: the step in the making.
        decision: the action, and the reason.
        situation: the domain as it stands.
        asked_for: an operator asks anew: panicd repeats a failed dump.
    """
    if turn.open.dumped or (turn.open.has_begun(Dump) and not asked_for):
        decision = replace(decision, coredump=False)
    policy, capability = turn.moment.policy, turn.known.capability
    turn.decided(make_plan(decision, policy, capability, situation))
    hearing.begin_plan(turn)
    if turn.moment.dry_run:
        if turn.alone:
            turn.close(Ending.QEMU_EXITED)
        else:
            turn.settle(IncidentState.PRESERVED)
        return
    if decision.action is Action.GRACE or capability.panic_setting is PanicSetting.NONE:
        set_panic(turn, plan=True)
    else:
        go_on(turn, 0)


def set_panic(turn: Turn, *, plan: bool) -> None:
    """Set QEMU's panic action to suit the decision in force; then go on.

    Args:
        turn: the step in the making.
        plan: go on with the plan; else with other due work.
    """
    capability = turn.known.capability
    decision = turn.incident.decision if turn.incident is not None else None
    setting = panic_setting(turn.moment.policy, capability, decision)
    phase = turn.enter(SettingPanic(setting, plan))
    if not capability.can_set_action or capability.panic_setting is setting:
        _panic_is_set(turn, phase)
        return
    turn.send([("set-action", (("panic", setting.value),))], ANSWER_TIMEOUT)


def panic_answered(turn: Turn, phase: SettingPanic, answered: Answered) -> str | None:
    """Take QEMU's answer about the panic action.

    Returns:
        Why panicd gives up the connection; None: it keeps it.
    """
    (answer,) = answered.answers
    if isinstance(answer, NoAnswer):
        return answer.text
    if not isinstance(answer, Refused):
        capability = replace(turn.known.capability, panic_setting=phase.setting)
        turn.vm = replace(turn.known, capability=capability)
    _panic_is_set(turn, phase)
    return None


def _panic_is_set(turn: Turn, phase: SettingPanic) -> None:
    if phase.plan:
        go_on(turn, 0)
    else:
        turn.rest()
        policy_is_in_force(turn)


def policy_is_in_force(turn: Turn) -> None:
    """Tell the driver; decide anew if a hold, now over, prevented an action."""
    turn.emit(effects.PolicyInForce())
    incident = turn.incident
    if incident is None or turn.moment.held:
        return
    held = incident.decision is not None and incident.decision.reason is Reason.HELD
    if held and incident.state is IncidentState.PRESERVED:
        ask_state(turn, AskingState(Then.HOLD_ENDED))


def ask_state(turn: Turn, phase: AskingState, timeout: float = ANSWER_TIMEOUT) -> None:
    """Ask QEMU for its run state; ``phase`` tells why."""
    turn.enter(phase)
    turn.send([QUERY_STATUS], timeout)


def proves_panic(turn: Turn, run_state: RunState | None) -> bool:
    """True if a run state proves that the guest was not reset since its panic."""
    version = turn.known.capability.behaves_like
    return Found(run_state, same_process=True, version=version).proves_panic


# Carrying out.


def go_on(turn: Turn, index: int) -> None:
    """Carry out the incident's plan from a step on, in this domain's turn."""
    if turn.moment.limited and turn.action_is(*DESTRUCTIVE) and not turn.has_turn:
        turn.has_turn = True
        turn.enter(AwaitingTurn(index))
        turn.commit()
        turn.emit(effects.TakeTurn(turn.serial))
        return
    execute(turn, index)


def execute(turn: Turn, index: int) -> None:
    """Carry out the plan from a step on."""
    hearing.take_deferred(turn)
    begin_step(turn, index)


def begin_step(turn: Turn, index: int) -> None:
    """Begin a step, or finish the plan if none is left."""
    plan = turn.plan
    if index < len(plan.steps):
        follow_up(turn, steps.begin(turn, index))
        return
    last = plan.steps[-1] if plan.steps else None
    course = overtaken(turn) if isinstance(last, TAKES_ITS_TIME) else None
    finish(turn, course or Course.COMPLETED)


def follow_up(turn: Turn, end: End) -> None:
    """Follow up a step's end; None: the step still waits."""
    match end:
        case Course():
            finish(turn, end)
        case Came():
            _end_step(turn, end)
        case None:
            pass


def _end_step(turn: Turn, came: Came) -> None:
    index, result = came.index, came.result
    turn.end(index, result)
    step = turn.step(index)
    if result.outcome in {Outcome.DONE, Outcome.SKIPPED}:
        begin_step(turn, index + 1)
        return
    course = overtaken(turn)
    if course is Course.RESET_BY_OTHERS or (course and result.outcome is Outcome.FAILED):
        finish(turn, course)  # the step failed because others reset or resumed the guest
        return
    is_cut_off = came.lost or cut_off(turn, step, result)
    if step.on_failure is OnFailure.CONTINUE and not is_cut_off:
        begin_step(turn, index + 1)
    elif result.outcome is Outcome.UNKNOWN or is_cut_off:
        finish(turn, Course.INTERRUPTED)
    else:
        finish(turn, _AFTER_FAILURE[step.on_failure])


def give_up_step(turn: Turn, index: int) -> None:
    """Count a step of unknown end as failed, and follow up the failure."""
    record = turn.open.steps.get(index)
    if record is None or record.outcome is not Outcome.FAILED:
        if turn.open.step_in_progress != index:
            turn.begin(index)
        turn.end(index, StepResult(Outcome.FAILED, GIVEN_UP))
    hearing.begin_plan(turn)
    if turn.step(index).on_failure is OnFailure.CONTINUE:
        go_on(turn, index + 1)
    else:
        finish(turn, _AFTER_FAILURE[turn.step(index).on_failure])


def finish(turn: Turn, course: Course) -> None:
    """Follow up a plan's course."""
    incident = turn.open
    match course:
        case Course.WATCHING if turn.known.resets > turn.resets_before:  # reset meanwhile
            turn.close(Ending.GUEST_RESET)
        case Course.WATCHING:
            turn.say("info", "guest is left to itself", until=incident.watched_until)
            turn.commit()
            turn.rest()
        case Course.FALL_BACK if incident.action is Action.GRACE:
            ask_state(turn, AskingState(Then.NO_GRACE))
        case Course.COMPLETED:
            conclude(turn)
        case Course.FALL_BACK:
            give_up(turn, Reason.ACTION_FAILED)
        case Course.PRESERVE:
            give_up(turn, Reason.DUMP_FAILED)
        case Course.RESET_BY_OTHERS:
            reset_by_others(turn)
        case Course.RESUMED_BY_OTHERS:
            _resumed_meanwhile(turn)
        case Course.HELD:
            decide_now(turn, turn.known.run_state)
        case Course.INTERRUPTED:
            interrupt(turn)
        case Course.AWAITING_RETURN:
            turn.commit()
            turn.rest()


def interrupt(turn: Turn) -> None:
    """Give up the session, as a step's end is unknown: panicd asks the VM in the next session.

    Further events of this session may be panicd's own doing: they do not count as others' doing.
    """
    turn.enter(Interrupted())
    turn.commit()
    if turn.granting is not None:
        turn.answer(UNKNOWN_WHETHER)
    if turn.known.ended:
        turn.rest()
    else:
        turn.emit(effects.Abort())


def conclude(turn: Turn) -> None:
    """Close or settle an incident whose plan is complete."""
    match turn.open.action:
        case Action.DESTROY:
            turn.close(Ending.DESTROYED)
        case Action.RESTART:
            turn.close(Ending.RESTARTED)
        case Action.RELEASE:
            turn.close(Ending.RELEASED)
        case Action.PRESERVE:
            turn.settle(IncidentState.PRESERVED)
        case Action.IGNORE:
            turn.settle(IncidentState.RUNNING_ON)
        case Action.GRACE:
            raise AssertionError("its plan's last step is the guest's to end")
        case Action.NONE:
            turn.close(Ending.QEMU_EXITED)


def give_up(turn: Turn, reason: Reason) -> None:
    """Decide what follows a failed decision, and carry it out."""
    failed = turn.open.decision
    assert failed is not None
    vm, policy = turn.known, turn.moment.policy
    situation = turn.situation(None if vm.has_gone else vm.run_state)
    can_relaunch = (
        failed.action is Action.RESTART
        and not failed.relaunch
        and not vm.capability.can_reset
        and policy.relaunch is not None
    )
    if can_relaunch:
        carry_out(turn, replace(failed, relaunch=True), situation)
    elif vm.has_gone or turn.alone or (failed.is_fallback and failed.action is Action.PRESERVE):
        turn.settle(IncidentState.FAILED)
    else:
        now = turn.moment.now
        decision = fall_back(policy, vm.capability, situation, failed, reason, now=now)
        carry_out(turn, decision, situation)


# Others reset the guest, or resume it.


def reset_by_others(turn: Turn) -> None:
    """Note that somebody else reset the guest: the panic is over when the guest runs."""
    ask_state(turn, AskingState(Then.RESET))


def reset_answered(turn: Turn) -> None:
    """Take QEMU's answer whether the guest that others reset runs."""
    state = turn.known.run_state
    if state.executes or state is RunState.POSTMIGRATE:
        turn.close(Ending.FOREIGN_RESET)
    elif proves_panic(turn, state):  # a panic of the kernel started since
        turn.close(Ending.FOREIGN_RESET)
        turn.unseen = True
    else:
        settle_reset(turn)


def settle_reset(turn: Turn) -> None:
    """Record that the guest is no longer the panicked one."""
    if turn.open.state is IncidentState.RESET:
        turn.rest()
        return
    index = turn.open.step_in_progress
    if index is not None and turn.open.state is IncidentState.ACTING:
        turn.end(index, StepResult(Outcome.UNKNOWN, "somebody reset the guest"))
    turn.settle(IncidentState.RESET)


def _resumed_meanwhile(turn: Turn) -> None:
    """Go on with the plan, if the policy enforces it, after somebody resumed the guest.

    A guest that panicd reset is no longer panicked. A guest that was to run may run.
    """
    incident, plan = turn.open, turn.plan
    index = max(incident.steps)
    reset = any(isinstance(plan.steps[i], SystemReset) for i in incident.steps if i < index)
    if reset or incident.action not in _TO_STAY_STOPPED:
        turn.close(Ending.FOREIGN_RESUME)
    else:
        stop_again(turn, plan=True)


def stop_again(turn: Turn, *, plan: bool = False) -> None:
    """Stop a guest that somebody else resumed, or end its incident."""
    enforce = turn.moment.policy.enforce and not turn.moment.dry_run
    if not enforce or turn.open.enforced >= ENFORCED_AT_MOST:
        turn.close(Ending.FOREIGN_RESUME)
        return
    turn.note(Enforced(turn.moment.now))
    turn.enter(StoppingAgain(Stage.RECORDING, hearing.resets_taken(turn), plan))
    turn.commit()


def stop_once_more(turn: Turn, phase: StoppingAgain, _came: Durable) -> None:
    """Stop the guest again: the journal says that panicd is about to."""
    if phase.stage is not Stage.RECORDING:
        return
    if turn.known.resets > phase.resets:  # reset during the commit
        _see_what_became(turn)
        return
    turn.enter(replace(phase, stage=Stage.GIVEN))
    turn.send([("stop", ())], ANSWER_TIMEOUT, acts=True)


def stop_again_answered(turn: Turn, phase: StoppingAgain, answered: Answered) -> str | None:
    """Take QEMU's answer to ``stop``, or its run state.

    Returns:
        Why panicd gives up the connection; None: it keeps it.
    """
    (answer,) = answered.answers
    if isinstance(answer, NoAnswer):
        if turn.known.resets > phase.resets:
            _know_reset(turn)
        return answer.text
    if phase.stage is Stage.GIVEN:  # refused or not: the run state tells
        turn.enter(replace(phase, stage=Stage.ASKING))
        turn.send([QUERY_STATUS], ANSWER_TIMEOUT)
        return None
    if isinstance(answer, Refused):
        return answer.text
    turn.learn_status(answer)
    _see_what_became(turn)
    return None


def _know_reset(turn: Turn) -> None:
    if turn.known.reset_by_guest:
        turn.close(Ending.GUEST_RESET)
    else:
        settle_reset(turn)


def _see_what_became(turn: Turn) -> None:
    phase, vm = turn.phase, turn.known
    assert isinstance(phase, StoppingAgain)
    if vm.resets > phase.resets:
        if vm.reset_by_guest:
            turn.close(Ending.GUEST_RESET)
        else:
            reset_by_others(turn)
    elif vm.run_state in _STOPPED:
        _stopped_again(turn, plan=phase.plan)
    elif vm.run_state.executes:
        stop_again(turn, plan=phase.plan)
    else:
        turn.close(Ending.FOREIGN_RESUME)


def _stopped_again(turn: Turn, *, plan: bool) -> None:
    """Go on after a guest was stopped again."""
    if turn.put_off is not None:  # its panic is only a repeat in this incident
        turn.repeat(turn.put_off.count)
        turn.put_off = None
    if not plan:
        turn.rest()
        return
    incident = turn.open
    index = max(incident.steps)
    outcome, on_failure = incident.steps[index].outcome, turn.step(index).on_failure
    if outcome is Outcome.FAILED and on_failure is not OnFailure.CONTINUE:
        finish(turn, _AFTER_FAILURE[on_failure])
    else:
        hearing.begin_plan(turn)
        go_on(turn, index if outcome is Outcome.SKIPPED else index + 1)
