"""How each step of a plan begins, and how all that precedes a command is done at once.

Each function returns the step's result, the plan's course, or None while the step waits.
"""

from typing import Final, assert_never

from panicd.rules.incident import Outcome, StepResult
from panicd.rules.machine import commands, effects, ending, halting
from panicd.rules.machine.inputs import Answered, NoAnswer
from panicd.rules.machine.results import Course, End, look, overtaken, skipped
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
)
from panicd.rules.machine.turn import Turn
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

NOT_GIVEN: Final = StepResult(Outcome.SKIPPED, "what goes before it is gone through step by step")


def begin(turn: Turn, index: int) -> End:
    """Begin a step of the plan."""
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
            return halting.begin_stopping(turn, index)
        case Collect():
            turn.enter(Collecting(index))
            turn.commit()
            turn.emit(effects.Collect(turn.serial, step, _follows(turn, index + 1)))
        case AwaitQuiet():
            turn.enter(Quieting(index, Stage.ASKING, turn.moment.ticks))
            turn.commit()
            halting.ask_quiet(turn)
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


# Readying: stop, quiet and the command's note, all at once.


def taken_at_once(plan: tuple[AnyStep, ...], index: int) -> int | None:
    """Return the step of the command that ends the panic, if only quiet precedes it."""
    match plan[index : index + 3]:
        case (EnsureStopped(), AwaitQuiet(), SystemReset() | Quit()):
            return index + 2
        case (AwaitQuiet(), SystemReset() | Quit(), *_):
            return index + 1
        case _:
            return None


def _readied(turn: Turn, index: int) -> int | None:
    return None if turn.known.ended else taken_at_once(turn.plan.steps, index)


def _follows(turn: Turn, index: int) -> SystemReset | Quit | None:
    """Return the command that ends the panic, if only quiet precedes it from a step on."""
    act = taken_at_once(turn.plan.steps, index)
    step = turn.step(act) if act is not None else None
    return step if isinstance(step, SystemReset | Quit) else None


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
    halting.ask_quiet(turn)
    return None


def readying_answered(turn: Turn, phase: Readying, answered: Answered) -> End:
    """Take QEMU's answer about its work."""
    busy = halting.busy_with(turn, answered)
    vm = turn.known
    if isinstance(busy, NoAnswer) and not busy.lost and not vm.run_state.executes:
        return _readied_all(turn, turn.update(phase, quiet_known=True, silent=True))
    if (
        busy
        or isinstance(busy, NoAnswer)
        or vm.run_state.executes
        or vm.run_state in halting.MIGRATED_AWAY
    ):
        return _one_by_one(turn, phase)
    return _readied_all(turn, turn.update(phase, quiet_known=True))


def readying_durable(turn: Turn, phase: Readying, _came: object) -> End:
    """Go on readying: the command's note is durable."""
    return _readied_all(turn, turn.update(phase, durable=True))


def _readied_all(turn: Turn, phase: Readying) -> End:
    """Give the command, once all is well."""
    if not (phase.quiet_known and phase.durable):
        return None
    if phase.stop is not None:
        turn.done(phase.stop, str(turn.known.run_state))
    turn.end(phase.quiet, halting.SAYS_NOTHING if phase.silent else StepResult(Outcome.DONE))
    if course := look(turn, phase.act):
        return course
    return _give_act(turn, phase.act)


def _one_by_one(turn: Turn, phase: Readying) -> End:
    """Begin anew, a step at a time: not all is well, and no command was given."""
    first = phase.quiet if phase.stop is None else phase.stop
    turn.end(phase.act, NOT_GIVEN)  # so that it does not count as a try
    turn.begin(first)
    if course := look(turn, first):
        return course
    if phase.stop is not None:
        return halting.begin_stopping(turn, first)
    turn.enter(Quieting(first, Stage.ASKING, turn.moment.ticks))
    halting.ask_quiet(turn)
    return None


def _give_act(turn: Turn, index: int) -> End:
    step = turn.step(index)
    if isinstance(step, Quit):
        quitting = Quitting(index, Stage.RECORDING, by_libvirt=_by_libvirt(turn, step))
        return ending.quitting_durable(turn, turn.enter(quitting))
    assert isinstance(step, SystemReset)
    giving = Giving(index, Stage.RECORDING, by_libvirt=_by_libvirt(turn, step))
    return commands.giving_durable(turn, turn.enter(giving))
