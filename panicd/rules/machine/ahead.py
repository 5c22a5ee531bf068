"""The machine run ahead: panicd knows what a panic leads to, up to the first command, before it.

Most panics come to a running guest, and nothing holds the action up. The inputs are then a panic,
its STOP, QEMU's answer that it is busy with nothing, a durable commit, and the evidence if any is
taken. ``foresee`` gives the machine these in advance. When a panic comes ``as_foreseen``, the
driver carries out the foreseen effects, and gives the machine the inputs a moment later. The
machine then returns the same effects, except for the time and the incident's id. Any other input
ends the reaction: the machine takes that input, after the earlier ones.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, TypeVar

from panicd.rules.budget import balance
from panicd.rules.capability import Capability
from panicd.rules.incident import AnyEntry, Opened, Outcome, StepResult
from panicd.rules.machine import effects
from panicd.rules.machine.answers import run_state_of, work_in_progress
from panicd.rules.machine.inputs import (
    Answered,
    Durable,
    Finished,
    Heard,
    Input,
    Moment,
    NoAnswer,
)
from panicd.rules.machine.state import Readying, Resting, State
from panicd.rules.machine.table import step
from panicd.rules.machine.vm import Vm
from panicd.rules.qapi import (
    DumpCompletedEvent,
    GuestPanickedEvent,
    PanicAction,
    RunState,
    StopEvent,
)
from panicd.rules.settings import Policy

PANIC: Final = Heard(GuestPanickedEvent(0.0, PanicAction.PAUSE))
STOP: Final = Heard(StopEvent(0.0))
QUIET: Final[object] = {}

DONE: Final = StepResult(Outcome.DONE)

SERIALS: Final = 256
"""How many pairs of a foreseen panic and a serial are remembered."""

Act = effects.Send | effects.Wake | effects.WatchProcess
Counted = TypeVar("Counted", bound=effects.Commit | effects.Collect | Act)


@dataclass(frozen=True, slots=True, eq=False)  # it is remembered by its identity
class Foreseen:
    """What a panic leads to. Serials count from the one before the panic; entries have time 0.

    Attributes:
        entries: after ``Opened``; they are durable before the command.
        commit: makes the entries durable, at the panic.
        asks: asks QEMU what it is busy with, at the panic.
        collects: has evidence taken, and limits its time, once the guest has stopped.
        acts: the command and its companions, once QEMU has answered, the entries are durable and
            the evidence is there.
    """

    entries: tuple[AnyEntry, ...]
    commit: effects.Commit
    asks: effects.Send
    collects: tuple[effects.Collect | effects.Wake, ...]
    acts: tuple[Act, ...]


def foresee(policy: Policy, capability: Capability) -> Foreseen | None:
    """Return what a panic of a running guest leads to; None if more precedes the command."""
    moment = Moment(0.0, 0.0, policy)
    resting = State(vm=Vm(RunState.RUNNING, capability), phase=Resting())
    state, made = step(resting, PANIC, moment)
    if not isinstance(state.phase, Readying):
        return None
    opened, *entries = (each.entry for each in made if isinstance(each, effects.Note))
    commit, asks = without_notes(made)
    assert isinstance(opened, Opened)
    assert isinstance(commit, effects.Commit)
    assert isinstance(asks, effects.Send)
    quiet = (*(QUIET for _ in asks.commands[1:]), {"status": RunState.GUEST_PANICKED.value})
    state, made = step(state, STOP, moment)
    collects = tuple(each for each in made if isinstance(each, effects.Collect | effects.Wake))
    assert collects == made
    inputs: list[Input] = [Answered(asks.serial, quiet), Durable(commit.serial)]
    inputs += [Finished(commit.serial, DONE)] if collects else []
    for came in inputs:
        state, made = step(state, came, moment)
    acts = tuple(each for each in without_notes(made) if isinstance(each, Act))
    if acts != without_notes(made):  # libvirt gives the command
        return None
    return Foreseen(tuple(entries), commit, asks, collects, acts)


def without_notes(made: Iterable[effects.Effect]) -> tuple[effects.Effect, ...]:
    """Return the effects without the notes."""
    return tuple(each for each in made if not isinstance(each, effects.Note))


def as_foreseen(state: State, heard: Heard, moment: Moment) -> bool:
    """True if the event is a panic whose effects can be foreseen."""
    vm, event, policy = state.vm, heard.event, moment.policy
    return (
        isinstance(event, GuestPanickedEvent)
        and event.action is PanicAction.PAUSE
        and event.information is None
        and heard.count == 1
        and vm is not None
        and _is_at_ease(state, vm)
        and not (moment.held or moment.storm or moment.limited or moment.unrecorded)
        and not (moment.dry_run or moment.silent)
        and _may_restart(policy, moment)
    )


def _may_restart(policy: Policy, moment: Moment) -> bool:
    if len(moment.restarts) < policy.restart.max:  # however old they are
        return True
    return not balance(policy.restart, moment.restarts, moment.now).spent


def _is_at_ease(state: State, vm: Vm) -> bool:
    """True if the guest runs, and nothing is under way or waits for its turn."""
    return (
        isinstance(state.phase, Resting)
        and state.incident is None
        and vm.run_state is RunState.RUNNING
        and vm.stop_means is RunState.PAUSED
        and vm.shutdown is None
        and not (vm.ended or vm.gone or state.alone or state.departed or state.has_turn)
        and not (state.stale or state.unseen or state.deferred or state.requests)
        and state.put_off is None
        and state.granting is None
    )


def is_stop(heard: Heard) -> bool:
    """True for the STOP that follows a panic."""
    return isinstance(heard.event, StopEvent)


def is_of_evidence(heard: Heard) -> bool:
    """True for an event that taking evidence leads to; the machine does nothing about it."""
    return isinstance(heard.event, DumpCompletedEvent)


def is_quiet(answered: Answered) -> bool:
    """True if QEMU answered that it is busy with nothing and the guest is panicked."""
    *busy, status = answered.answers
    if run_state_of(status) is not RunState.GUEST_PANICKED or work_in_progress(*busy):
        return False
    return NoAnswer not in map(type, busy)


@lru_cache(SERIALS)
def counted(foreseen: Foreseen, serial: int) -> Foreseen:
    """Return what is foreseen with the serials that a panic's effects have.

    Args:
        foreseen: made by ``foresee``.
        serial: the machine's before the panic.
    """

    def counted_on(effect: Counted) -> Counted:
        if isinstance(effect, effects.WatchProcess):
            return effect
        return replace(effect, serial=effect.serial + serial)

    return Foreseen(
        foreseen.entries,
        counted_on(foreseen.commit),
        counted_on(foreseen.asks),
        tuple(map(counted_on, foreseen.collects)),
        tuple(map(counted_on, foreseen.acts)),
    )
