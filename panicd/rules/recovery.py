"""How an open incident goes on when its domain is found again.

The daemon was restarted, the connection was lost, or the VM was relaunched. The journal tells how
far the plan had come, the VM tells its run state. From both ``recover`` derives what to do, so that
panicd does nothing twice and forgets nothing. It judges a step of unknown outcome by the state that
the step should have led to. If the state does not tell, panicd begins the step again, but not for
ever: a step that loses its answer each time has failed.
"""

import math
from dataclasses import dataclass
from typing import Final

from panicd.rules.capability import Version
from panicd.rules.incident import Ending, Incident, Outcome, State
from panicd.rules.on_crash import Action
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
    OnFailure,
    Quit,
    RunRelaunch,
    SystemReset,
    Terminate,
)
from panicd.rules.qapi import RunState

# QEMU's run state after a system_reset of a panicked guest: measured, see docs/qemu.md.
RESET_LEAVES_PANICKED: Final = ((1, 7, 0), (2, 6, 0))

MOST_TRIES: Final[dict[type, float]] = {
    Collect: 2,  # Collect and Dump take long, and may themselves end the connection
    Dump: 2,
    SystemReset: 3,
    Cont: 3,
    Quit: 3,
}
"""How often panicd begins a step whose end stays unknown, before the step counts as failed."""


@dataclass(frozen=True, slots=True)
class Found:
    """A domain as it is found.

    Attributes:
        run_state: the present QEMU's run state; None if there is no QEMU.
        same_process: it is the QEMU that the incident began on.
        version: the present QEMU's version.
        by_panic: QEMU ended with the panic itself, as it does where it is not armed.
        by_libvirt: the run state comes from libvirt. If libvirtd ends while it resets a guest, it
            goes on calling the guest crashed.
        evidence_lost: the incident's evidence was taken, and panicd ended before it was written.
    """

    run_state: RunState | None
    same_process: bool
    version: Version
    by_panic: bool = False
    by_libvirt: bool = False
    evidence_lost: bool = False

    @property
    def proves_panic(self) -> bool:
        """Whether its run state proves that the guest was not reset since its panic."""
        earliest, latest = RESET_LEAVES_PANICKED
        tells = not earliest <= self.version < latest
        return self.run_state is RunState.GUEST_PANICKED and tells


@dataclass(frozen=True, slots=True)
class GoOn:
    """Carry out the plan from this step on."""

    index: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Count this step as failed, if it is not yet known to be, and go on as after a failure."""

    index: int


@dataclass(frozen=True, slots=True)
class Redecide:
    """Decide anew: the plan came to nothing."""


@dataclass(frozen=True, slots=True)
class Stay:
    """The incident stays as it is."""


@dataclass(frozen=True, slots=True)
class End:
    """The episode is over. If the guest is panicked nevertheless, it has panicked anew."""

    ending: Ending


Recovery = GoOn | GiveUp | Redecide | Stay | End


def recover(incident: Incident, found: Found) -> Recovery:
    """Return how an open incident goes on."""
    recovery = _recover(incident, found)
    if isinstance(recovery, GoOn) and _was_tried_enough(incident, recovery.index):
        return GiveUp(recovery.index)
    return recovery


def took_evidence(incident: Incident) -> bool:
    """Whether the plan in force has taken evidence."""
    index = _begun(incident, Collect)
    return index is not None and incident.steps[index].outcome is Outcome.DONE


def _was_tried_enough(incident: Incident, index: int) -> bool:
    assert incident.plan is not None
    step = incident.plan.steps[index] if index < len(incident.plan.steps) else None
    return incident.begun.get(index, 0) >= MOST_TRIES.get(type(step), math.inf)


def _recover(incident: Incident, found: Found) -> Recovery:
    step, index = _last_step(incident)
    ended = isinstance(step, RunRelaunch | AwaitReturn)  # they come after the process's end
    if found.run_state is None or not found.same_process or ended:
        return _process_gone(incident, found)
    if incident.state is State.RESET:
        return _reset_and_left(found)
    if incident.state in {State.PRESERVED, State.FAILED, State.RUNNING_ON, State.DETECTED}:
        return _settled(incident, found.run_state, found.version)
    if isinstance(step, AwaitGuestReset):
        return _watched(found.run_state)
    match found.run_state:
        case RunState.GUEST_PANICKED:
            return _still_panicked(incident, step, index, found)
        case RunState.POSTMIGRATE:
            return End(Ending.MIGRATED)
        case RunState.RUNNING | RunState.SUSPENDED | RunState.COLO:
            return _running(incident, step)
        case RunState.PRELAUNCH | RunState.PAUSED:
            return _stopped(incident, step, index, found.run_state, found.version)
        case _:
            # Nothing tells whether this is still the panicked guest: it may be a healthy one.
            return Stay()


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
    waits = incident.state in {State.PRESERVED, State.FAILED, State.RESET}
    if isinstance(step, AwaitReturn) or (waits and isinstance(step, RunRelaunch)):
        return End(Ending.RELAUNCHED) if came_back else Stay()
    if waits:
        return End(Ending.QEMU_GONE)
    if isinstance(step, RunRelaunch):
        if incident.steps[index].outcome is Outcome.SKIPPED:  # panicd came no further
            by_panicd = _begun(incident, Quit) is not None
            ending = Ending.DESTROYED if by_panicd else Ending.QEMU_GONE
            return End(ending) if came_back else GoOn(index)
        # The command may have run, so panicd does not run it again but waits for the VM.
        return End(Ending.RELAUNCHED) if came_back else GoOn(index + 1)
    relaunch = incident.decision is not None and incident.decision.relaunch
    if relaunch and step is not None and not came_back:
        # QEMU had to end in any case: by panicd, or by itself as it can't be reset.
        return GoOn(_index_of(incident, RunRelaunch))
    if isinstance(step, Quit | Terminate | Kill):
        return End(Ending.DESTROYED)
    # A guest that was let run after its panic did not end with that panic.
    let_run = incident.action is Action.GRACE and _begun(incident, Cont) is not None
    by_panic = found.by_panic and not let_run
    if not came_back and (isinstance(step, SystemReset) or by_panic):
        return Redecide()
    return End(Ending.QEMU_GONE)


def _index_of(incident: Incident, kind: type[AnyStep]) -> int:
    assert incident.plan is not None
    return next(i for i, step in enumerate(incident.plan.steps) if isinstance(step, kind))


def _watched(run_state: RunState) -> Recovery:
    """Return how to go on with a guest that was left to handle its panic itself.

    A running guest may have reset itself meanwhile, or not; panicd can't tell, and watches on.
    """
    match run_state:
        case RunState.GUEST_PANICKED:
            return Redecide()
        case RunState.POSTMIGRATE:
            return End(Ending.MIGRATED)
        case RunState.PRELAUNCH:
            return End(Ending.FOREIGN_RESET)
        case RunState.SHUTDOWN:
            return End(Ending.GUEST_SHUTDOWN)
        case _:
            return Stay()


def _settled(incident: Incident, run_state: RunState, version: Version) -> Recovery:
    if incident.runs_unproven and (run_state.executes or run_state is RunState.GUEST_PANICKED):
        return Stay() if run_state.executes else End(Ending.RAN_ON)
    if run_state is RunState.GUEST_PANICKED:
        match incident.state:
            case State.DETECTED:
                return Redecide()
            case State.RUNNING_ON:
                return End(Ending.RAN_ON)
            case _:
                return Stay()
    if run_state is RunState.PRELAUNCH or _reset_leaves_paused(run_state, version):
        return End(Ending.FOREIGN_RESET)
    if run_state.executes:
        return Stay() if incident.state is State.RUNNING_ON else End(Ending.FOREIGN_RESUME)
    return Stay()


def _reset_and_left(found: Found) -> Recovery:
    """Return how to go on with a guest that somebody else had reset, and not let run."""
    assert found.run_state is not None
    if found.run_state is RunState.POSTMIGRATE:
        return End(Ending.MIGRATED)
    return End(Ending.FOREIGN_RESET) if found.run_state.executes or found.proves_panic else Stay()


def _still_panicked(incident: Incident, step: AnyStep | None, index: int, found: Found) -> Recovery:
    if not _made_for_stopped_guest(incident):
        return Redecide()
    if (lost := _to_take_again(incident, found)) is not None:
        return GoOn(lost)
    reset = _begun(incident, SystemReset)
    if reset is not None:
        earliest, latest = RESET_LEAVES_PANICKED
        done = incident.steps[reset].outcome is Outcome.DONE
        says_so_when_reset = found.by_libvirt or earliest <= found.version < latest
        if says_so_when_reset and not _let_go(incident):
            # It was reset and has not run, or somebody let it run and it panicked anew: nothing
            # tells. A reset is right either way, a cont in one case only.
            return _ready_for(incident, reset)
        if isinstance(step, Cont) or done:
            return End(Ending.RESTARTED)
        return _ready_for(incident, reset)
    if _let_go(incident) and incident.action is Action.GRACE:
        return Redecide()
    if _let_go(incident):
        return End(_let_run(incident))
    first_of_end = _begun(incident, Quit)
    if first_of_end is not None:
        return _ready_for(incident, first_of_end)
    return _unfinished(incident, index)


def _to_take_again(incident: Incident, found: Found) -> int | None:
    """Return the step of the evidence that is lost, if the guest still shows it."""
    collect, reset = _begun(incident, Collect), _begun(incident, SystemReset)
    was_reset = reset is not None and incident.steps[reset].outcome is Outcome.DONE
    if (
        not (found.evidence_lost and found.proves_panic)
        or collect is None
        or not took_evidence(incident)
        or was_reset
        or _let_go(incident)
        or _was_tried_enough(incident, collect)
    ):
        return None
    return collect


def _ready_for(incident: Incident, command: int) -> Recovery:
    """Return how to go on with a command that may or may not have been given.

    The journal has it while the steps before it are still under way. panicd repeats those steps,
    except for evidence that was tried enough: it may have ended panicd.
    """
    if _was_tried_enough(incident, command):
        return GiveUp(command)
    ended = (i for i in range(command) if i in incident.steps and not _is_unfinished(incident, i))
    first = max(ended, default=-1) + 1
    collect = _begun(incident, Collect)
    again = collect is not None and first <= collect < command
    if collect is not None and again and _was_tried_enough(incident, collect):
        return GiveUp(collect)
    return GoOn(min(i for i in range(first, command + 1) if i in incident.steps))


def _is_unfinished(incident: Incident, index: int) -> bool:
    record = incident.steps.get(index)
    return record is not None and record.outcome is None


def _running(incident: Incident, step: AnyStep | None) -> Recovery:
    if _begun(incident, SystemReset) is not None:
        return End(Ending.RESTARTED)
    ignored = incident.action is Action.IGNORE and incident.plan is not None
    if incident.action is Action.GRACE and incident.plan is not None:
        watch = _index_of(incident, AwaitGuestReset)
        if watch == 0 or isinstance(step, Cont):
            return GoOn(watch)  # it was let run, or had not been stopped
    if isinstance(step, Cont) and not ignored:
        return End(_let_run(incident))
    if incident.plan and ignored and (isinstance(step, Cont) or not incident.plan.steps):
        return GoOn(len(incident.plan.steps))
    return End(Ending.FOREIGN_RESUME)


def _made_for_stopped_guest(incident: Incident) -> bool:
    """Whether the plan was made for a guest that the panic stopped, and so still holds for it."""
    steps = incident.plan.steps if incident.plan else ()
    runs_again = any(isinstance(step, Cont) for step in steps)
    return (
        bool(steps)
        and isinstance(steps[0], EnsureStopped)
        and (incident.action is not Action.IGNORE or runs_again)
    )


def _unfinished(incident: Incident, index: int) -> Recovery:
    """Return how to go on with the step that was begun.

    panicd does not repeat a Collect or Dump whose end is known, even if there is no evidence. A
    dump whose end is unknown may still be under way in QEMU.
    """
    assert incident.plan is not None
    step, record = incident.plan.steps[index], incident.steps.get(index)
    if not isinstance(step, Collect | Dump) or record is None:
        return GoOn(index)
    if record.outcome is Outcome.FAILED and step.on_failure is not OnFailure.CONTINUE:
        return GiveUp(index)
    if record.outcome not in {None, Outcome.UNKNOWN}:
        return GoOn(index + 1)
    if _was_tried_enough(incident, index):
        return GiveUp(index)
    return GoOn(_index_of(incident, AwaitQuiet) if isinstance(step, Dump) else index)


def _let_go(incident: Incident) -> bool:
    """Whether the plan's cont is known to have let the guest run."""
    cont = _begun(incident, Cont)
    return cont is not None and incident.steps[cont].outcome is Outcome.DONE


def _let_run(incident: Incident) -> Ending:
    return Ending.RELEASED if incident.action is Action.RELEASE else Ending.RAN_ON


def _stopped(
    incident: Incident, step: AnyStep | None, index: int, run_state: RunState, version: Version
) -> Recovery:
    reset = _begun(incident, SystemReset)
    _, left_panicked_until = RESET_LEAVES_PANICKED
    if _let_go(incident) and incident.action is not Action.GRACE:
        return End(Ending.RESTARTED if reset is not None else _let_run(incident))
    if reset is not None:
        if run_state is RunState.PRELAUNCH:
            return GoOn(reset + 1)
        # panicd's own stop leaves 'paused' too: then only the result proves the reset.
        if incident.steps[reset].outcome is not Outcome.DONE:
            return _ready_for(incident, reset)
        # Since 2.6 a reset leaves 'prelaunch': it was let run, and somebody paused it.
        if version >= left_panicked_until:
            return End(Ending.RESTARTED)
        return GoOn(reset + 1)
    if run_state is RunState.PRELAUNCH or _reset_leaves_paused(run_state, version):
        return End(Ending.FOREIGN_RESET)
    if _begun(incident, EnsureStopped) is None:
        return End(Ending.FOREIGN_RESUME)
    if isinstance(step, Cont) and incident.action is Action.GRACE:
        return GoOn(index + 1)  # as below: it ran, and somebody paused it since
    if isinstance(step, Cont) and incident.action is Action.IGNORE and not _dumps(incident):
        # This cont was for a panicked guest, so it ran, and somebody paused it since.
        return End(_let_run(incident))
    return _ready_for(incident, index) if isinstance(step, Quit) else _unfinished(incident, index)


def _reset_leaves_paused(run_state: RunState, version: Version) -> bool:
    """Whether a reset leaves this run state, before 1.7; a panic always leaves 'guest-panicked'."""
    earliest, _ = RESET_LEAVES_PANICKED
    return run_state is RunState.PAUSED and version < earliest


def _dumps(incident: Incident) -> bool:
    return incident.plan is not None and any(isinstance(s, Dump) for s in incident.plan.steps)
