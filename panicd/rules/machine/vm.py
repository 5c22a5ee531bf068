"""Knowledge of one connected VM: a value that follows events and answers."""

from dataclasses import dataclass, replace
from enum import StrEnum

from panicd.rules.capability import Capability
from panicd.rules.qapi import (
    Event,
    GuestPanickedEvent,
    PanicAction,
    ResetEvent,
    ResumeEvent,
    RunState,
    ShutdownEvent,
    StopEvent,
)


class Stand(StrEnum):
    """How a guest stands, as far as a command depends on it."""

    RUNS = "runs"
    PANICKED = "panicked"
    RESET = "reset"  # and not yet let run
    STOPPED = "stopped"  # by anything else


def stand_of(state: RunState) -> Stand:
    """Return how a guest stands in a run state."""
    if state.executes:
        return Stand.RUNS
    if state is RunState.GUEST_PANICKED:
        return Stand.PANICKED
    return Stand.RESET if state is RunState.PRELAUNCH else Stand.STOPPED


@dataclass(frozen=True, slots=True)
class Vm:
    """One VM, from its session's greeting to its end.

    Attributes:
        run_state: the last answer, updated by later events.
        capability: what this QEMU can do.
        process: identifies the QEMU process; empty: not known.
        stop_means: the run state that the next STOP leads to.
        resets: RESET events of this session.
        resumes: RESUME events of this session.
        reset_by_guest: the last reset was the guest's own.
        reset_since_panic: the guest is not panicked, though QEMU 1.7 to 2.5 say so.
        shutdown: the SHUTDOWN event, if one came and the guest did not go on since.
        ended: the connection is gone.
        gone: the process is known to have ended.
    """

    run_state: RunState
    capability: Capability
    process: str = ""
    stop_means: RunState = RunState.PAUSED
    resets: int = 0
    resumes: int = 0
    reset_by_guest: bool = False
    reset_since_panic: bool = False
    shutdown: ShutdownEvent | None = None
    ended: bool = False
    gone: bool = False

    @property
    def stops_by_panic(self) -> bool:
        """True if a panic has stopped the guest, or is about to."""
        return RunState.GUEST_PANICKED in {self.run_state, self.stop_means}

    @property
    def stand(self) -> Stand:
        """The guest's stand, by all its events."""
        if self.stops_by_panic:
            return Stand.RESET if self.reset_since_panic else Stand.PANICKED
        return stand_of(self.run_state)

    @property
    def has_gone(self) -> bool:
        """True if QEMU is gone, by its process, or if unknown, by its last word."""
        return self.gone if self.process else self.ended and self.shutdown is not None

    @property
    def times_let_go(self) -> int:
        """How often anybody has reset the guest or let it run."""
        return self.resets + self.resumes


def with_capability(vm: Vm, capability: Capability) -> Vm:
    """Return the VM with its QEMU's capability as now known."""
    known = capability is vm.capability or capability == vm.capability
    return vm if known else replace(vm, capability=capability)


def follow(vm: Vm, event: Event) -> Vm:
    """Return the VM after an event."""
    match event:
        case GuestPanickedEvent(action=PanicAction.PAUSE):
            # The STOP that follows does not tell why; this event does.
            return _stopping(vm, vm.run_state, RunState.GUEST_PANICKED, False)
        case StopEvent():
            return _stopping(vm, vm.stop_means, RunState.PAUSED, vm.reset_since_panic)
        case ResumeEvent():
            resumes = vm.resumes + 1
            return replace(vm, run_state=RunState.RUNNING, resumes=resumes, shutdown=None)
        case ResetEvent(guest=guest):
            reset = replace(vm, resets=vm.resets + 1, reset_by_guest=guest, shutdown=None)
            return replace(reset, reset_since_panic=True)
        case ShutdownEvent():
            return replace(vm, shutdown=event)
        case _:
            return vm


def _stopping(vm: Vm, run_state: RunState, stop_means: RunState, reset_since_panic: bool) -> Vm:
    """Return a VM that a panic stops; ``replace`` takes four times as long before a command."""
    return Vm(
        run_state,
        vm.capability,
        vm.process,
        stop_means,
        vm.resets,
        vm.resumes,
        vm.reset_by_guest,
        reset_since_panic,
        vm.shutdown,
        vm.ended,
        vm.gone,
    )
