"""Steps that at most stop the guest: stop, quiet, evidence, dump.

Each function returns the step's result, the plan's course, or None while the step waits.
"""

from typing import Final

from panicd.rules.capability import DETACHED_DUMP_SINCE
from panicd.rules.incident import Outcome, StepResult
from panicd.rules.machine import effects
from panicd.rules.machine.answers import work_in_progress
from panicd.rules.machine.inputs import Answered, Finished, NoAnswer, Refused
from panicd.rules.machine.results import Came, End, done, failed, look, unknown
from panicd.rules.machine.state import (
    Collecting,
    Dumping,
    Quieting,
    Stage,
    Stopping,
)
from panicd.rules.machine.turn import BUSY_TIMEOUT, QUERY_STATUS, Turn
from panicd.rules.plan import (
    Dump,
)
from panicd.rules.qapi import RunState

STOP_FOLLOWS: Final = 0.05  # seconds; STOP was seen 60 to 500 µs after GUEST_PANICKED
QUIET_CHECK: Final = 1.0  # seconds between two checks for the end of a migration or a job
MIGRATED_AWAY: Final = {RunState.FINISH_MIGRATE, RunState.POSTMIGRATE}
SAYS_NOTHING: Final = StepResult(Outcome.SKIPPED, "QEMU does not say what it is busy with")


# The guest's stop.


def begin_stopping(turn: Turn, index: int) -> End:
    """Wait for the STOP that follows a panic."""
    if not turn.known.run_state.executes:
        return done(index)
    if turn.known.ended:
        return unknown(index, "the session ended before the guest had stopped")
    turn.enter(Stopping(index, Stage.WAITING))
    turn.commit()
    turn.wake(STOP_FOLLOWS)
    return None


def stopping_heard(turn: Turn, phase: Stopping, _came: object = None) -> End:
    """Check whether the guest has stopped."""
    if phase.stage is Stage.WAITING and not turn.known.run_state.executes:
        return done(phase.index)
    if phase.stage is Stage.WAITING and turn.known.ended:
        return unknown(phase.index, "the session ended before the guest had stopped")
    return None


def stopping_elapsed(turn: Turn, phase: Stopping, _came: object = None) -> End:
    """Ask for the run state: STOP did not come."""
    if phase.stage is not Stage.WAITING:
        return None
    turn.enter(Stopping(phase.index, Stage.ASKING))
    turn.send([QUERY_STATUS], turn.step(phase.index).timeout)
    return None


def stopping_answered(turn: Turn, phase: Stopping, answered: Answered) -> End:
    """Take the run state, or QEMU's answer to ``stop``."""
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


def stopping_durable(turn: Turn, phase: Stopping, _came: object = None) -> End:
    """Stop the guest: the journal says that panicd is about to."""
    if phase.stage is not Stage.RECORDING:
        return None
    if course := look(turn, phase.index):
        return course
    turn.enter(Stopping(phase.index, Stage.GIVEN))
    turn.send([("stop", ())], turn.step(phase.index).timeout, acts=True)
    return None


# What QEMU is busy with.


def ask_quiet(turn: Turn) -> None:
    """Ask QEMU for work that an action would cut off, then for its run state."""
    questions: list[effects.Command] = [("query-migrate", ()), ("query-block-jobs", ())]
    if turn.known.capability.behaves_like >= DETACHED_DUMP_SINCE:
        questions.append(("query-dump", ()))
    turn.send([*questions, QUERY_STATUS], BUSY_TIMEOUT)


def busy_with(turn: Turn, answered: Answered) -> str | NoAnswer:
    """Learn the run state, and return what QEMU is busy with; empty: nothing."""
    *answers, status = answered.answers
    silent = next((each for each in answered.answers if isinstance(each, NoAnswer)), None)
    if silent is not None:
        return silent
    turn.learn_status(status)
    return work_in_progress(*answers)


def quieting_answered(turn: Turn, phase: Quieting, answered: Answered) -> End:
    """Take QEMU's answer about its work."""
    index = phase.index
    busy = busy_with(turn, answered)
    if isinstance(busy, NoAnswer):
        if busy.lost or phase.busy:
            return unknown(index, busy.text)
        return Came(index, SAYS_NOTHING)
    if not busy:
        # A panic lets a migration end at once: it may be over already. A guest that runs here
        # too would be a second copy.
        if turn.known.run_state in MIGRATED_AWAY:
            return failed(index, "the guest was migrated away")
        return done(index, phase.busy and f"waited for {phase.busy}")
    limit = turn.step(index).timeout
    if turn.moment.ticks - phase.began >= limit:
        return failed(index, f"{busy} did not end in {limit:g} s")
    turn.say("info", "waiting", until_the_end_of=busy)
    waiting = turn.enter(Quieting(index, Stage.WAITING, phase.began, busy))
    turn.wake(QUIET_CHECK)
    return quieting_heard(turn, waiting)


def quieting_heard(turn: Turn, phase: Quieting, _came: object = None) -> End:
    """Take an event during the wait for QEMU's work."""
    if phase.stage is Stage.ASKING:
        return None
    if turn.known.ended:
        return unknown(phase.index, "the session ended while QEMU's work was waited for")
    return look(turn, phase.index)


def quieting_elapsed(turn: Turn, phase: Quieting, _came: object = None) -> End:
    """Ask again."""
    if phase.stage is Stage.WAITING:
        turn.enter(Quieting(phase.index, Stage.ASKING, phase.began, phase.busy))
        ask_quiet(turn)
    return None


# Evidence, a dump.


def collected(_turn: Turn, phase: Collecting, finished: Finished) -> End:
    """Take the result of the evidence step."""
    return Came(phase.index, finished.result, finished.lost)


def dumping_durable(turn: Turn, phase: Dumping, _came: object = None) -> End:
    """Start the dump: the journal has its step."""
    if phase.stage is not Stage.RECORDING:
        return None
    if course := look(turn, phase.index):
        return course
    step = turn.step(phase.index)
    assert isinstance(step, Dump)
    turn.enter(Dumping(phase.index, Stage.GIVEN))
    turn.emit(effects.MakeDump(turn.serial, step))
    return None


def dumped(turn: Turn, phase: Dumping, finished: Finished) -> End:
    """Take the dump's result."""
    result = finished.result
    if result.outcome is Outcome.FAILED:
        course = look(turn, phase.index, None if finished.overtaken else result)
        if course is not None:
            return course
    return Came(phase.index, result, finished.lost)
