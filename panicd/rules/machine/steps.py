"""How each step of a plan goes: what is asked and given, what is waited for, and what proves it.

Every function here returns how the step in progress came out (``Came``), how the whole plan did
(``Course``), or None while something is waited for.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, assert_never

from panicd.rules.capability import DETACHED_DUMP_SINCE
from panicd.rules.incident import Outcome, StepResult
from panicd.rules.machine import effects
from panicd.rules.machine.answers import work_in_progress
from panicd.rules.machine.inputs import Answered, Finished, NoAnswer, Refused, Told
from panicd.rules.machine.state import (
    Collecting,
    Dumping,
    Giving,
    Quieting,
    Quitting,
    Readying,
    Relaunching,
    Signalling,
    Stage,
    Stopping,
)
from panicd.rules.machine.turn import ANSWER_TIMEOUT, BUSY_TIMEOUT, QUERY_STATUS, Turn
from panicd.rules.plan import (
    AnyStep,
    AwaitGuestReset,
    AwaitQuiet,
    AwaitReturn,
    Collect,
    Cont,
    Dump,
    EnsureStopped,
    Kill,
    Quit,
    RunRelaunch,
    SystemReset,
    Terminate,
)
from panicd.rules.qapi import RunState

STOP_FOLLOWS: Final = 0.05  # seconds; STOP was seen 60 to 500 µs after GUEST_PANICKED
GONE_FOLLOWS: Final = 1.0  # seconds between a monitor's end of file and its process's end
QUIET_CHECK: Final = 1.0  # seconds between two looks at whether a migration or a job has ended
LIBVIRT_PATIENCE: Final = 35.0  # seconds; a job of libvirt's own lasts 30 at most
MIGRATED_AWAY: Final = {RunState.FINISH_MIGRATE, RunState.POSTMIGRATE}
TAKES_ITS_TIME: Final = (EnsureStopped, Collect, AwaitQuiet, Dump)
"""Steps after which the guest is looked at once more, where they are a plan's last."""


class Course(StrEnum):
    """How a plan's execution ended."""

    COMPLETED = "completed"
    AWAITING_RETURN = "awaiting-return"  # the last step is the relaunched domain's to end
    WATCHING = "watching"  # the last step is the guest's to end
    FALL_BACK = "fall-back"  # a step failed and the policy's fallback is to be decided
    PRESERVE = "preserve"  # a step failed and the guest is to be left as it is
    INTERRUPTED = "interrupted"  # it is not known how a step ended: ask the VM again
    RESET_BY_OTHERS = "reset-by-others"  # the guest is no longer the panicked one
    RESUMED_BY_OTHERS = "resumed-by-others"  # nor here


@dataclass(frozen=True, slots=True)
class Came:
    """A step has ended."""

    index: int
    result: StepResult


End = Came | Course | None


def done(index: int, detail: str = "") -> Came:
    """Return that a step is done."""
    return Came(index, StepResult(Outcome.DONE, detail))


def failed(index: int, detail: str) -> Came:
    """Return that a step failed."""
    return Came(index, StepResult(Outcome.FAILED, detail))


def unknown(index: int, detail: str) -> Came:
    """Return that it is not known how a step ended."""
    return Came(index, StepResult(Outcome.UNKNOWN, detail))


def skipped(index: int, detail: str) -> Came:
    """Return that there was nothing left to do."""
    return Came(index, StepResult(Outcome.SKIPPED, detail))


# The guest that was decided about.


def overtaken(turn: Turn) -> Course | None:
    """Return how the plan ends if the guest is known to be another by now."""
    vm, (resets, resumes) = turn.known, turn.base
    if vm.resets > resets:
        return Course.RESET_BY_OTHERS
    return Course.RESUMED_BY_OTHERS if vm.resumes > resumes else None


def look(turn: Turn, index: int, result: StepResult | None = None) -> Course | None:
    """See that the guest still is the panicked one that was decided about; else end the step.

    Args:
        turn: the step in the making.
        index: of the plan's step in progress.
        result: of it; None: it is not taken, if the guest is another.
    """
    course = overtaken(turn)
    if course is not None:
        turn.end(index, result or StepResult(Outcome.SKIPPED, course.value))
    return course


def cut_off(turn: Turn, step: AnyStep, result: StepResult) -> bool:
    """Whether the session is gone that the steps after this one need.

    Signals need none: they end a QEMU that was told to end. One that may not have been told is
    asked again how it stands, for its guest may be a healthy one by now.
    """
    told_to_end = (
        isinstance(step, Quit | Terminate | Kill) and result.outcome is not Outcome.UNKNOWN
    )
    can_go_on = isinstance(step, RunRelaunch) or (told_to_end and bool(turn.known.process))
    return turn.known.ended and not can_go_on


# Beginning.


def begin(turn: Turn, index: int) -> End:
    """Begin with a step of the plan."""
    step = turn.step(index)
    if (act := _readied(turn, index)) is not None:
        return _begin_readying(turn, index, act)
    turn.begin(index)
    if isinstance(step, AwaitReturn):
        return Course.AWAITING_RETURN
    if isinstance(step, AwaitGuestReset):
        return Course.WATCHING
    if course := look(turn, index):
        return course
    match step:
        case EnsureStopped():
            return _begin_stopping(turn, index)
        case Collect():
            turn.enter(Collecting(index))
            turn.commit()
            turn.emit(effects.Collect(turn.serial, step))
        case AwaitQuiet():
            turn.enter(Quieting(index, Stage.ASKING, turn.moment.ticks))
            turn.commit()
            ask_quiet(turn)
        case Dump():
            turn.enter(Dumping(index, Stage.RECORDING))
            turn.commit()
        case SystemReset() | Cont():
            turn.enter(Giving(index, Stage.RECORDING, by_libvirt=_by_libvirt(turn, step)))
            turn.commit()
        case Quit():
            turn.enter(Quitting(index, Stage.RECORDING, by_libvirt=_by_libvirt(turn, step)))
            turn.commit()
        case Terminate() | Kill():
            if turn.known.has_gone:
                return skipped(index, "the process is gone")
            turn.enter(Signalling(index, Stage.RECORDING))
            turn.commit()
        case RunRelaunch():
            turn.enter(Relaunching(index, Stage.RECORDING))
            turn.commit()
        case _:
            assert_never(step)
    return None


def _by_libvirt(turn: Turn, step: SystemReset | Cont | Quit) -> bool:
    return step.by_libvirt and turn.known.capability.libvirt is not None


# Readying: stop, quiet and the command's being on record, all at once.


def _readied(turn: Turn, index: int) -> int | None:
    """Return the step of the command that ends the panic, if nothing but quiet goes before it."""
    following = turn.plan.steps[index : index + 3]
    if turn.known.ended:
        return None
    match following:
        case (EnsureStopped(), AwaitQuiet(), SystemReset() | Quit()):
            return index + 2
        case (AwaitQuiet(), SystemReset() | Quit(), *_):
            return index + 1
        case _:
            return None


def _begin_readying(turn: Turn, index: int, act: int) -> End:
    if (course := overtaken(turn)) is not None:
        turn.begin(index)
        turn.end(index, StepResult(Outcome.SKIPPED, course.value))
        return course
    stop = index if act - index == 2 else None
    for each in range(index, act + 1):
        turn.begin(each)
    turn.enter(Readying(stop, act - 1, act))
    turn.commit()
    ask_quiet(turn)
    return None


def readying_answered(turn: Turn, answered: Answered) -> End:
    """QEMU said what it is busy with."""
    phase = turn.phase
    assert isinstance(phase, Readying)
    busy = _busy_with(turn, answered)
    vm = turn.known
    if busy or isinstance(busy, NoAnswer) or vm.run_state.executes or vm.run_state in MIGRATED_AWAY:
        return _one_by_one(turn, phase)
    turn.update(quiet_known=True)
    return readied(turn)


def readying_durable(turn: Turn) -> End:
    """The command is on record as about to be given."""
    turn.update(durable=True)
    return readied(turn)


def readied(turn: Turn) -> End:
    """Give the command, once all is well."""
    phase = turn.phase
    assert isinstance(phase, Readying)
    if not (phase.quiet_known and phase.durable):
        return None
    if phase.stop is not None:
        turn.done(phase.stop, str(turn.known.run_state))
    turn.done(phase.quiet)
    if course := look(turn, phase.act):
        return course
    return _give_act(turn, phase.act)


def _one_by_one(turn: Turn, phase: Readying) -> End:
    """Begin anew, a step at a time, where not all is well: nothing was given."""
    first = phase.quiet if phase.stop is None else phase.stop
    turn.begin(first)
    if course := look(turn, first):
        return course
    if phase.stop is not None:
        return _begin_stopping(turn, first)
    turn.enter(Quieting(first, Stage.ASKING, turn.moment.ticks))
    ask_quiet(turn)
    return None


def _give_act(turn: Turn, index: int) -> End:
    step = turn.step(index)
    if isinstance(step, Quit):
        turn.enter(Quitting(index, Stage.RECORDING, by_libvirt=_by_libvirt(turn, step)))
        return quitting_durable(turn)
    assert isinstance(step, SystemReset)
    turn.enter(Giving(index, Stage.RECORDING, by_libvirt=_by_libvirt(turn, step)))
    return giving_durable(turn)


# The guest's stop.


def _begin_stopping(turn: Turn, index: int) -> End:
    if not turn.known.run_state.executes:
        return done(index)
    if turn.known.ended:
        return unknown(index, "the session ended before the guest had stopped")
    turn.enter(Stopping(index, Stage.WAITING))
    turn.commit()
    turn.wake(STOP_FOLLOWS)
    return None


def stopping_heard(turn: Turn) -> End:
    """Something happened while the guest's stop is waited for."""
    phase = turn.phase
    assert isinstance(phase, Stopping)
    if phase.stage is Stage.WAITING and not turn.known.run_state.executes:
        return done(phase.index)
    if phase.stage is Stage.WAITING and turn.known.ended:
        return unknown(phase.index, "the session ended before the guest had stopped")
    return None


def stopping_elapsed(turn: Turn) -> End:
    """The stop did not come: ask how the guest stands."""
    phase = turn.phase
    assert isinstance(phase, Stopping)
    if phase.stage is not Stage.WAITING:
        return None
    turn.enter(Stopping(phase.index, Stage.ASKING))
    turn.send([QUERY_STATUS], turn.step(phase.index).timeout)
    return None


def stopping_answered(turn: Turn, answered: Answered) -> End:
    """QEMU said how it stands, or that it has stopped the guest."""
    phase = turn.phase
    assert isinstance(phase, Stopping)
    index, (answer, *_) = phase.index, answered.answers
    if isinstance(answer, NoAnswer):
        return unknown(index, answer.text)
    if isinstance(answer, Refused):
        return failed(index, answer.text)
    if phase.stage is Stage.GIVEN:
        turn.enter(Stopping(index, Stage.CONFIRMING))
        turn.send([QUERY_STATUS], turn.step(index).timeout)
        return None
    turn.learn_status(answer)
    state = turn.known.run_state
    if not state.executes:
        return done(index, str(state))
    if phase.stage is Stage.CONFIRMING:
        return failed(index, f"run state {state} after stop")
    turn.enter(Stopping(index, Stage.RECORDING))
    turn.commit()
    return None


def stopping_durable(turn: Turn) -> End:
    """It is on record that the guest is about to be stopped."""
    phase = turn.phase
    assert isinstance(phase, Stopping)
    if phase.stage is not Stage.RECORDING:
        return None
    if course := look(turn, phase.index):
        return course
    turn.enter(Stopping(phase.index, Stage.GIVEN))
    turn.send([("stop", ())], turn.step(phase.index).timeout, acts=True)
    return None


# What QEMU is busy with.


def ask_quiet(turn: Turn) -> None:
    """Ask QEMU for what an action on the guest would cut off, and its run state after that."""
    questions: list[effects.Command] = [("query-migrate", ()), ("query-block-jobs", ())]
    if turn.known.capability.version >= DETACHED_DUMP_SINCE:
        questions.append(("query-dump", ()))
    turn.send([*questions, QUERY_STATUS], BUSY_TIMEOUT)


def _busy_with(turn: Turn, answered: Answered) -> str | NoAnswer:
    """Return what QEMU is busy with, empty where there is nothing; and learn its run state."""
    *answers, status = answered.answers
    silent = next((each for each in answered.answers if isinstance(each, NoAnswer)), None)
    if silent is not None:
        return silent
    turn.learn_status(status)
    return work_in_progress(*answers)


def quieting_answered(turn: Turn, answered: Answered) -> End:
    """QEMU said what it is busy with."""
    phase = turn.phase
    assert isinstance(phase, Quieting)
    index = phase.index
    busy = _busy_with(turn, answered)
    if isinstance(busy, NoAnswer):
        if busy.lost or phase.busy:
            return unknown(index, busy.text)
        return skipped(index, "QEMU does not say what it is busy with")
    if not busy:
        # A panic lets a migration end at once: it may be over already. To let the guest run here
        # too would be a second copy of it.
        if turn.known.run_state in MIGRATED_AWAY:
            return failed(index, "the guest was migrated away")
        return done(index, phase.busy and f"waited for {phase.busy}")
    limit = turn.step(index).timeout
    if turn.moment.ticks - phase.began >= limit:
        return failed(index, f"{busy} did not end in {limit:g} s")
    turn.say("info", "waiting", until_the_end_of=busy)
    turn.enter(Quieting(index, Stage.WAITING, phase.began, busy))
    turn.wake(QUIET_CHECK)
    return quieting_heard(turn)


def quieting_heard(turn: Turn) -> End:
    """Something happened while QEMU's work is waited for."""
    phase = turn.phase
    assert isinstance(phase, Quieting)
    if phase.stage is Stage.ASKING:
        return None
    if turn.known.ended:
        return unknown(phase.index, "the session ended while QEMU's work was waited for")
    return look(turn, phase.index)


def quieting_elapsed(turn: Turn) -> End:
    """Ask again."""
    phase = turn.phase
    assert isinstance(phase, Quieting)
    if phase.stage is Stage.WAITING:
        turn.enter(Quieting(phase.index, Stage.ASKING, phase.began, phase.busy))
        ask_quiet(turn)
    return None


# Evidence, a dump.


def collected(turn: Turn, finished: Finished) -> End:
    """Evidence was taken."""
    phase = turn.phase
    assert isinstance(phase, Collecting)
    return Came(phase.index, finished.result)


def dumping_durable(turn: Turn) -> End:
    """It is on record that memory is about to be dumped."""
    phase = turn.phase
    assert isinstance(phase, Dumping)
    if phase.stage is not Stage.RECORDING:
        return None
    if course := look(turn, phase.index):
        return course
    step = turn.step(phase.index)
    assert isinstance(step, Dump)
    turn.enter(Dumping(phase.index, Stage.GIVEN))
    turn.emit(effects.MakeDump(turn.serial, step))
    return None


def dumped(turn: Turn, finished: Finished) -> End:
    """The dump has ended, well or not."""
    phase = turn.phase
    assert isinstance(phase, Dumping)
    result = finished.result
    if result.outcome is Outcome.FAILED:
        course = look(turn, phase.index, None if finished.overtaken else result)
        if course is not None:
            return course
    return Came(phase.index, result)


# Reset and resume: commands that have an event of their own.


def _events(turn: Turn, step: AnyStep) -> int:
    return turn.known.resets if isinstance(step, SystemReset) else turn.known.resumes


def giving_durable(turn: Turn) -> End:
    """The command is on record as about to be given."""
    phase = turn.phase
    assert isinstance(phase, Giving)
    if phase.stage is not Stage.RECORDING:
        return None
    if course := look(turn, phase.index):
        return course
    step, timeout = turn.step(phase.index), turn.step(phase.index).timeout
    turn.enter(Giving(phase.index, Stage.GIVEN, phase.by_libvirt, _events(turn, step)))
    is_reset = isinstance(step, SystemReset)
    if phase.by_libvirt:
        verb = "reset" if is_reset else "resume"
        turn.emit(effects.TellLibvirt(turn.serial, verb, LIBVIRT_PATIENCE))
    else:
        turn.send([("system_reset" if is_reset else "cont", ())], timeout, acts=True)
    return None


def giving_heard(turn: Turn) -> End:
    """Something happened: perhaps what the command is to bring about."""
    phase = turn.phase
    assert isinstance(phase, Giving)
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


def giving_answered(turn: Turn, answered: Answered) -> End:
    """QEMU has answered the command, or the question after it."""
    phase = turn.phase
    assert isinstance(phase, Giving)
    (answer,) = answered.answers
    if phase.stage is Stage.CONFIRMING:
        return _confirmed(turn, phase, answer)
    if isinstance(answer, Refused):
        return failed(phase.index, answer.text)
    return _given(turn, phase, answer.text if isinstance(answer, NoAnswer) else "")


def _given(turn: Turn, phase: Giving, doubt: str) -> End:
    """Go on waiting for the event, for as long as it may take."""
    step = turn.step(phase.index)
    turn.enter(Giving(phase.index, Stage.ANSWERED, phase.by_libvirt, phase.before, doubt))
    turn.wake(step.timeout if isinstance(step, SystemReset) else STOP_FOLLOWS)
    return giving_heard(turn)


def giving_told(turn: Turn, told: Told) -> End:
    """Libvirt has answered, or not."""
    phase = turn.phase
    assert isinstance(phase, Giving)
    match told.how:
        case "done":
            return _given(turn, phase, "")
        case "silent":
            return _given(turn, phase, told.text)
        case "refused":
            return failed(phase.index, told.text)
        case _:
            what = "reset" if isinstance(turn.step(phase.index), SystemReset) else "resume"
            turn.say("warning", "done without libvirt", what=what, why=told.text)
            if course := look(turn, phase.index):
                return course
            turn.enter(Giving(phase.index, Stage.RECORDING, by_libvirt=False))
            turn.commit()
            return None


def giving_elapsed(turn: Turn) -> End:
    """The event did not come in its time."""
    phase = turn.phase
    assert isinstance(phase, Giving)
    if phase.stage is not Stage.ANSWERED:
        return None
    if phase.doubt or turn.known.ended:
        return unknown(phase.index, phase.doubt or "the session ended before it was seen")
    if isinstance(turn.step(phase.index), SystemReset):
        return failed(phase.index, "no RESET was seen")
    # RESUME comes before the reply. A guest that panics at once is past it already, so a run
    # state of guest-panicked after it is a new panic and not a cont that failed.
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


# The end of QEMU.


def quitting_durable(turn: Turn) -> End:
    """``quit`` is on record as about to be given."""
    phase = turn.phase
    assert isinstance(phase, Quitting)
    if phase.stage is not Stage.RECORDING:
        return None
    if course := look(turn, phase.index):
        return course
    timeout = turn.step(phase.index).timeout
    turn.enter(Quitting(phase.index, Stage.GIVEN, phase.by_libvirt))
    turn.emit(effects.WatchProcess())
    if phase.by_libvirt:
        turn.emit(effects.TellLibvirt(turn.serial, "destroy", timeout))
    else:
        turn.send([("quit", ())], timeout, acts=True)
    turn.wake(timeout)
    return None


def quitting_told(turn: Turn, told: Told) -> End:
    """Libvirt has answered, or not: then QEMU is told."""
    phase = turn.phase
    assert isinstance(phase, Quitting)
    if told.how == "done":
        return quitting_heard(turn)
    turn.say("warning", "done without libvirt", what="destroy", why=told.text)
    if course := look(turn, phase.index):
        return course
    turn.enter(Quitting(phase.index, Stage.RECORDING, by_libvirt=False))
    turn.commit()
    return None


def quitting_answered(turn: Turn, answered: Answered) -> End:
    """QEMU has answered ``quit``, or its end came before."""
    phase = turn.phase
    assert isinstance(phase, Quitting)
    (answer,) = answered.answers
    if isinstance(answer, Refused):
        return failed(phase.index, answer.text)
    if isinstance(answer, NoAnswer) and answer.lost and turn.known.shutdown is None:
        turn.update(cut=True)
        turn.wake(GONE_FOLLOWS)
    return quitting_heard(turn)


def quitting_heard(turn: Turn) -> End:
    """Something happened: perhaps QEMU's end."""
    phase = turn.phase
    assert isinstance(phase, Quitting)
    vm = turn.known
    if phase.stage is Stage.RECORDING:
        return None
    if vm.has_gone:
        return done(phase.index)
    if vm.ended and not vm.process:
        return _not_gone(turn, phase)
    return None


def quitting_elapsed(turn: Turn) -> End:
    """QEMU is still there, or nobody knows."""
    phase = turn.phase
    assert isinstance(phase, Quitting)
    return _not_gone(turn, phase)


def _not_gone(turn: Turn, phase: Quitting) -> End:
    vm = turn.known
    if phase.cut or (vm.ended and not vm.process):
        return unknown(phase.index, "the session ended without a word of QEMU's end")
    limit = turn.step(phase.index).timeout
    return failed(phase.index, f"still there {limit:g} s after quit")


def signalling_durable(turn: Turn) -> End:
    """The signal is on record as about to be sent."""
    phase = turn.phase
    assert isinstance(phase, Signalling)
    if phase.stage is not Stage.RECORDING:
        return None
    if course := look(turn, phase.index):
        return course
    turn.enter(Signalling(phase.index, Stage.GIVEN))
    turn.emit(effects.SendSignal(turn.serial, _signal(turn, phase)))
    return None


def _signal(turn: Turn, phase: Signalling) -> str:
    return "SIGTERM" if isinstance(turn.step(phase.index), Terminate) else "SIGKILL"


def signalled(turn: Turn, finished: Finished) -> End:
    """The signal was sent, or could not be."""
    phase = turn.phase
    assert isinstance(phase, Signalling)
    if finished.result.outcome is not Outcome.DONE:
        return Came(phase.index, finished.result)
    turn.enter(Signalling(phase.index, Stage.ANSWERED))
    turn.emit(effects.WatchProcess())
    turn.wake(turn.step(phase.index).timeout)
    return signalling_heard(turn)


def signalling_heard(turn: Turn) -> End:
    """Something happened: perhaps QEMU's end."""
    phase = turn.phase
    assert isinstance(phase, Signalling)
    sent = phase.stage is Stage.ANSWERED
    return done(phase.index) if sent and turn.known.has_gone else None


def signalling_elapsed(turn: Turn) -> End:
    """QEMU is still there."""
    phase = turn.phase
    assert isinstance(phase, Signalling)
    limit = turn.step(phase.index).timeout
    return failed(phase.index, f"still there {limit:g} s after {_signal(turn, phase)}")


# The domain anew.


def relaunching_durable(turn: Turn) -> End:
    """The relaunch is on record as about to be done."""
    phase = turn.phase
    assert isinstance(phase, Relaunching)
    if phase.stage is not Stage.RECORDING:
        return None
    step = turn.step(phase.index)
    assert isinstance(step, RunRelaunch)
    turn.enter(Relaunching(phase.index, Stage.GIVEN))
    turn.emit(effects.Relaunch(turn.serial, step))
    return None


def relaunched(turn: Turn, finished: Finished) -> End:
    """The relaunch has ended, well or not."""
    phase = turn.phase
    assert isinstance(phase, Relaunching)
    return Came(phase.index, finished.result)
