"""How each step of a plan begins, and how all that precedes a command is done at once.

Each function returns the step's result, the plan's course, or None while the step waits.
"""

from typing import Final, assert_never

from panicd.rules.incident import Outcome, StepResult
from panicd.rules.machine import commands, effects, ending, halting
from panicd.rules.machine.inputs import Answered, Finished, NoAnswer
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
from panicd.rules.qapi import RunState

EVIDENCE_WITHIN: Final = 1.0
"""Seconds in which evidence is part of readying; one panic of many at once may take half of that.
After that QEMU is asked once more, and the journal does not say any longer that the command has
begun."""

STOP_WITHIN: Final = 0.5
"""Seconds until QEMU is asked because STOP does not come. When 1,000 domains panic at once, and
other work keeps the processors busy, some STOPs are read 0.15 s after their panics."""

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
            _collect(turn, index)
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


# Readying: stop, evidence, quiet and the command's note, all at once.


def taken_at_once(plan: tuple[AnyStep, ...], index: int) -> int | None:
    """Return the step of the command that ends the panic, if only quiet and evidence precede it."""
    match plan[index : index + 4]:
        case (EnsureStopped(), Collect(), AwaitQuiet(), SystemReset() | Quit()):
            return index + 3
        case (EnsureStopped() | Collect(), AwaitQuiet(), SystemReset() | Quit(), *_):
            return index + 2
        case (AwaitQuiet(), SystemReset() | Quit(), *_):
            return index + 1
        case _:
            return None


def _readied(turn: Turn, index: int) -> int | None:
    return None if turn.known.ended else taken_at_once(turn.plan.steps, index)


def _begin_readying(turn: Turn, index: int, act: int) -> End:
    if (course := overtaken(turn)) is not None:
        turn.begin(index)
        turn.end(index, StepResult(Outcome.SKIPPED, course.value))
        return course
    of = {type(turn.step(each)): each for each in range(index, act)}
    for each in range(index, act + 1):
        turn.begin(each)
    work = turn.known.work if turn.known.is_known_idle else None
    phase = turn.enter(Readying(of.get(EnsureStopped), of.get(Collect), act - 1, act, work))
    turn.commit()
    if work is None:
        halting.ask_quiet(turn)
    else:  # nothing needs asking if STOP follows
        turn.wake(STOP_WITHIN)
    return _ready_on(turn, phase)


def readying_heard(turn: Turn, phase: Readying, _came: object) -> End:
    """Go on readying: the guest may have stopped."""
    return None if turn.known.ended and phase.work is None else _ready_on(turn, phase)


def readying_answered(turn: Turn, phase: Readying, answered: Answered) -> End:
    """Take QEMU's answer about its work."""
    busy = halting.busy_with(turn, answered)
    vm = turn.known
    if isinstance(busy, NoAnswer) and not busy.lost and not vm.run_state.executes:
        return _ready_on(turn, turn.update(phase, quiet_known=True, silent=True))
    if (
        busy
        or isinstance(busy, NoAnswer)
        or vm.run_state.executes
        or vm.run_state in halting.MIGRATED_AWAY
    ):
        return _one_by_one(turn, phase)
    return _ready_on(turn, turn.update(phase, quiet_known=True))


def readying_durable(turn: Turn, phase: Readying, _came: object) -> End:
    """Go on readying: the command's note is durable."""
    return _ready_on(turn, turn.update(phase, durable=True))


def readying_collected(turn: Turn, phase: Readying, finished: Finished) -> End:
    """Go on readying: evidence was taken."""
    assert phase.collect is not None
    _end_stop(turn, phase)
    turn.end(phase.collect, finished.result)
    if finished.lost:
        turn.end(phase.act, NOT_GIVEN)
        return Course.INTERRUPTED
    return _ready_on(turn, turn.update(phase, stop=None, collect=None, collects=False))


def readying_elapsed(turn: Turn, phase: Readying, _came: object) -> End:
    """Go on step by step if evidence takes long: what QEMU said may no longer be true.

    Before evidence, ask QEMU if STOP does not come.
    """
    if phase.collects:
        return _one_by_one(turn, phase)
    if phase.work is not None and turn.known.run_state.executes:
        _ask(turn, phase)
    return None


def _ask(turn: Turn, phase: Readying) -> Readying:
    """Ask QEMU what it is busy with: its events do not prove that it is nothing."""
    halting.ask_quiet(turn)
    return turn.update(phase, work=None)


def _is_proven(turn: Turn, phase: Readying) -> bool:
    """True if QEMU's work is as it was at the panic, which has stopped the guest or will."""
    vm = turn.known
    stops = vm.stops_by_panic and vm.run_state in {RunState.RUNNING, RunState.GUEST_PANICKED}
    return stops and vm.work == phase.work and not vm.ended


def _ready_on(turn: Turn, phase: Readying) -> End:
    """Have evidence taken when the guest has stopped; give the command when all is well."""
    if phase.work is not None and not _is_proven(turn, phase):
        phase = _ask(turn, phase)
        if turn.known.ended:
            return None
    if phase.collect is not None and not phase.collects:
        if phase.stop is not None and turn.known.run_state.executes:
            return None
        if course := look(turn, phase.act):
            turn.end(phase.collect, StepResult(Outcome.SKIPPED, course.value))
            return course
        _collect(turn, phase.collect, phase.act)
        turn.wake(EVIDENCE_WITHIN)
        phase = turn.update(phase, collects=True)
    stopped = turn.known.run_state is RunState.GUEST_PANICKED
    quiet = phase.quiet_known or (phase.work is not None and stopped)
    if not (quiet and phase.durable and phase.collect is None):
        return None
    if turn.known.ended:
        return _one_by_one(turn, phase)
    _end_stop(turn, phase)
    turn.end(phase.quiet, halting.SAYS_NOTHING if phase.silent else StepResult(Outcome.DONE))
    if course := look(turn, phase.act):
        return course
    return _give_act(turn, phase.act)


def _end_stop(turn: Turn, phase: Readying) -> None:
    if phase.stop is not None:
        turn.done(phase.stop, str(turn.known.run_state))


def _collect(turn: Turn, index: int, act: int | None = None) -> None:
    step, follows = turn.step(index), turn.step(act) if act is not None else None
    assert isinstance(step, Collect)
    assert follows is None or isinstance(follows, SystemReset | Quit)
    turn.emit(effects.Collect(turn.serial, step, turn.plan, follows))


def _one_by_one(turn: Turn, phase: Readying) -> End:
    """Begin anew, a step at a time: not all is well, and no command was given."""
    turn.end(phase.act, NOT_GIVEN)  # so that it does not count as a try
    if phase.collect is not None:
        turn.end(phase.collect, NOT_GIVEN)
    if phase.collect is not None and phase.collects:
        _end_stop(turn, phase)
        turn.begin(phase.collect)
        turn.commit()
        turn.phase = Collecting(phase.collect)  # with this serial the evidence comes
        return None
    first = phase.quiet if phase.stop is None else phase.stop
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
