"""Steps that end QEMU and relaunch its domain.

Each function returns the step's result, the plan's course, or None while the step waits.
"""

from typing import Final

from panicd.rules.incident import Outcome
from panicd.rules.machine import effects
from panicd.rules.machine.inputs import Answered, Finished, NoAnswer, Refused, Told
from panicd.rules.machine.results import Came, End, done, failed, look, unknown
from panicd.rules.machine.state import (
    Quitting,
    Relaunching,
    Signalling,
    Stage,
)
from panicd.rules.machine.turn import Turn
from panicd.rules.plan import (
    RunRelaunch,
    Terminate,
)

GONE_FOLLOWS: Final = 1.0  # seconds from a monitor's end of file to its process's end


def quitting_durable(turn: Turn, phase: Quitting, _came: object = None) -> End:
    """Have QEMU end, by libvirt or ``quit``: the journal has the step."""
    if phase.stage is not Stage.RECORDING:
        return None
    if course := look(turn, phase.index):
        return course
    timeout = turn.step(phase.index).timeout
    turn.enter(Quitting(phase.index, Stage.GIVEN, phase.by_libvirt))
    turn.emit(effects.WatchProcess())
    if phase.by_libvirt:
        turn.tell_libvirt("destroy", timeout)
    else:
        turn.send([("quit", ())], timeout, acts=True)
    turn.wake(timeout)
    return None


def quitting_told(turn: Turn, phase: Quitting, told: Told) -> End:
    """Take libvirt's answer; tell QEMU if libvirt did not do it."""
    if told.how == "done":
        return quitting_heard(turn, phase)
    if course := look(turn, phase.index):
        return course
    turn.say("warning", "done without libvirt", what="destroy", why=told.text)
    turn.enter(Quitting(phase.index, Stage.RECORDING, by_libvirt=False))
    turn.commit()
    return None


def quitting_answered(turn: Turn, phase: Quitting, answered: Answered) -> End:
    """Take QEMU's answer to ``quit``, or its end."""
    (answer,) = answered.answers
    if isinstance(answer, Refused):
        return failed(phase.index, answer.text)
    if isinstance(answer, NoAnswer) and answer.lost and turn.known.shutdown is None:
        phase = turn.update(phase, cut=True)
        if not turn.known.capability.by_api:  # else libvirt reports it later
            turn.wake(GONE_FOLLOWS)
    return quitting_heard(turn, phase)


def quitting_heard(turn: Turn, phase: Quitting, _came: object = None) -> End:
    """Check whether QEMU has ended."""
    vm = turn.known
    if phase.stage is Stage.RECORDING:
        return None
    if vm.has_gone:
        return done(phase.index)
    if vm.ended and not vm.process:
        return _not_gone(turn, phase)
    return None


def quitting_elapsed(turn: Turn, phase: Quitting, _came: object = None) -> End:
    """Handle a QEMU that did not end in time, or is not known to have."""
    return _not_gone(turn, phase)


def _not_gone(turn: Turn, phase: Quitting) -> End:
    vm = turn.known
    if phase.cut or (vm.ended and not vm.process):
        return unknown(phase.index, "the session ended, and QEMU did not say that it ends")
    limit = turn.step(phase.index).timeout
    return failed(phase.index, f"still there {limit:g} s after quit")


def signalling_durable(turn: Turn, phase: Signalling, _came: object = None) -> End:
    """Send the signal: the journal has its step."""
    if phase.stage is not Stage.RECORDING:
        return None
    if course := look(turn, phase.index):
        return course
    turn.enter(Signalling(phase.index, Stage.GIVEN))
    turn.emit(effects.SendSignal(turn.serial, _signal(turn, phase)))
    return None


def _signal(turn: Turn, phase: Signalling) -> str:
    return "SIGTERM" if isinstance(turn.step(phase.index), Terminate) else "SIGKILL"


def signalled(turn: Turn, phase: Signalling, finished: Finished) -> End:
    """Take the result of sending the signal."""
    if finished.result.outcome is not Outcome.DONE:
        return Came(phase.index, finished.result)
    sent = turn.enter(Signalling(phase.index, Stage.ANSWERED))
    turn.emit(effects.WatchProcess())
    turn.wake(turn.step(phase.index).timeout)
    return signalling_heard(turn, sent)


def signalling_heard(turn: Turn, phase: Signalling, _came: object = None) -> End:
    """Check whether QEMU has ended."""
    sent = phase.stage is Stage.ANSWERED
    return done(phase.index) if sent and turn.known.has_gone else None


def signalling_elapsed(turn: Turn, phase: Signalling, _came: object = None) -> End:
    """Handle a QEMU that outlived the signal."""
    limit = turn.step(phase.index).timeout
    return failed(phase.index, f"still there {limit:g} s after {_signal(turn, phase)}")


# The relaunch.


def relaunching_durable(turn: Turn, phase: Relaunching, _came: object = None) -> End:
    """Start the relaunch: the journal has its step."""
    if phase.stage is not Stage.RECORDING:
        return None
    step = turn.step(phase.index)
    assert isinstance(step, RunRelaunch)
    turn.enter(Relaunching(phase.index, Stage.GIVEN))
    turn.emit(effects.Relaunch(turn.serial, step))
    return None


def relaunched(_turn: Turn, phase: Relaunching, finished: Finished) -> End:
    """Take the relaunch's result."""
    return Came(phase.index, finished.result)
