"""How an open incident goes on when its domain is found again.

The daemon was restarted, the connection was lost, or the VM was relaunched: the journal tells how
far the plan had come, and the VM tells how it stands. From the two ``recover`` says what to do, so
that nothing is done twice and nothing is forgotten. A step without a known outcome is judged by
the state it should have led to.
"""

from dataclasses import dataclass
from typing import Final

from panicd.rules.capability import Version
from panicd.rules.incident import Ending, Incident, Outcome, State
from panicd.rules.plan import (
    AnyStep,
    AwaitReturn,
    Cont,
    EnsureStopped,
    Kill,
    Quit,
    RunRelaunch,
    SystemReset,
    Terminate,
)
from panicd.rules.qapi import RunState

# QEMU's run state after a system_reset of a panicked guest: measured, see docs/qemu.md.
RESET_LEAVES_PANICKED: Final = ((1, 7, 0), (2, 6, 0))


@dataclass(frozen=True, slots=True)
class Found:
    """A domain as it is found.

    Attributes:
        run_state: of the QEMU that is there now; None where there is none.
        same_process: it is the QEMU that the incident began on.
        version: of that QEMU.
        by_panic: QEMU ended with the panic itself, as it does where it is not armed.
    """

    run_state: RunState | None
    same_process: bool
    version: Version
    by_panic: bool = False


@dataclass(frozen=True, slots=True)
class GoOn:
    """Carry out the plan from this step on."""

    index: int


@dataclass(frozen=True, slots=True)
class Redecide:
    """Decide anew: the plan came to nothing."""


@dataclass(frozen=True, slots=True)
class Stay:
    """The incident stays as it is."""


@dataclass(frozen=True, slots=True)
class End:
    """The episode is over; ``and_again`` where the guest has panicked anew since."""

    ending: Ending
    and_again: bool = False


Recovery = GoOn | Redecide | Stay | End


def recover(incident: Incident, found: Found) -> Recovery:
    """Return how an open incident goes on."""
    if found.run_state is None or not found.same_process:
        return _process_gone(incident, found)
    if incident.state in {State.PRESERVED, State.FAILED, State.RUNNING_ON, State.DETECTED}:
        return _settled(incident, found.run_state)
    step, index = _last_step(incident)
    match found.run_state:
        case RunState.GUEST_PANICKED:
            return _still_panicked(incident, step, index, found.version)
        case RunState.RUNNING | RunState.SUSPENDED:
            return _running(incident, step)
        case RunState.PRELAUNCH | RunState.PAUSED:
            return _stopped(incident, step, index, found.run_state)
        case _:
            return Redecide()


def _last_step(incident: Incident) -> tuple[AnyStep | None, int]:
    """Return the step that was begun last, and its index; None and 0 where none was."""
    if not incident.steps or incident.plan is None:
        return None, 0
    index = max(incident.steps)
    return incident.plan.steps[index], index


def _begun(incident: Incident, kind: type[AnyStep]) -> int | None:
    """Return the index of the first step of a kind, if it was begun."""
    plan = incident.plan
    return next(
        (i for i in sorted(incident.steps) if plan and isinstance(plan.steps[i], kind)), None
    )


def _process_gone(incident: Incident, found: Found) -> Recovery:
    step, index = _last_step(incident)
    came_back = found.run_state is not None
    if isinstance(step, AwaitReturn):
        return End(Ending.RELAUNCHED) if came_back else Stay()
    if isinstance(step, RunRelaunch):
        # Whether the command ran is not known, so it isn't run again: its VM is waited for.
        return End(Ending.RELAUNCHED) if came_back else GoOn(index + 1)
    if isinstance(step, Quit | Terminate | Kill):
        relaunch = incident.decision is not None and incident.decision.relaunch
        if relaunch and not came_back:
            return GoOn(_index_of(incident, RunRelaunch))
        return End(Ending.DESTROYED)
    if not came_back and (isinstance(step, SystemReset) or found.by_panic):
        return Redecide()
    return End(Ending.QEMU_GONE)


def _index_of(incident: Incident, kind: type[AnyStep]) -> int:
    assert incident.plan is not None
    return next(i for i, step in enumerate(incident.plan.steps) if isinstance(step, kind))


def _settled(incident: Incident, run_state: RunState) -> Recovery:
    if run_state is RunState.GUEST_PANICKED:
        match incident.state:
            case State.DETECTED:
                return Redecide()
            case State.RUNNING_ON:
                return End(Ending.RAN_ON, and_again=True)
            case _:
                return Stay()
    if run_state is RunState.PRELAUNCH:
        return End(Ending.FOREIGN_RESET)
    if run_state.executes:
        return Stay() if incident.state is State.RUNNING_ON else End(Ending.FOREIGN_RESUME)
    return Stay()


def _still_panicked(
    incident: Incident, step: AnyStep | None, index: int, version: Version
) -> Recovery:
    reset = _begun(incident, SystemReset)
    if reset is not None:
        earliest, latest = RESET_LEAVES_PANICKED
        done = incident.steps[reset].outcome is Outcome.DONE
        if earliest <= version < latest:
            # After a cont that may have run this may be a new panic: a reset is right either way.
            return GoOn(reset + 1 if done and not isinstance(step, Cont) else reset)
        if isinstance(step, Cont) or done:
            return End(Ending.RESTARTED, and_again=True)
        return GoOn(reset)
    if isinstance(step, Cont) and incident.steps[index].outcome is Outcome.DONE:
        return End(Ending.RESUMED, and_again=True)
    first_of_end = _begun(incident, Quit)
    return GoOn(index if first_of_end is None else first_of_end)


def _running(incident: Incident, step: AnyStep | None) -> Recovery:
    if _begun(incident, SystemReset) is not None:
        return End(Ending.RESTARTED)
    if isinstance(step, Cont):
        return End(Ending.RESUMED)
    if incident.plan is not None and not incident.plan.steps:
        return GoOn(0)
    return End(Ending.FOREIGN_RESUME)


def _stopped(incident: Incident, step: AnyStep | None, index: int, run_state: RunState) -> Recovery:
    reset = _begun(incident, SystemReset)
    if reset is not None:
        # 'paused' is also what panicd's own stop left: then only the result proves the reset.
        proven = run_state is RunState.PRELAUNCH or incident.steps[reset].outcome is Outcome.DONE
        return GoOn(reset + 1 if proven else reset)
    if run_state is RunState.PRELAUNCH:
        return End(Ending.FOREIGN_RESET)
    if isinstance(step, EnsureStopped) or _begun(incident, EnsureStopped) is not None:
        return GoOn(index)
    return End(Ending.FOREIGN_RESUME)
