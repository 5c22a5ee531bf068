"""The plan for a decision: frozen steps, each with its time limit and the consequence of a failure.

A plan is static data. ``panicd explain`` prints it, tests check it as a table, and the journal has
all of it before its first step. Only this module makes a ``Cont``: after a ``SystemReset``, for an
operator's release, for ``ignore`` if the panic or its dump had stopped the guest, and for the grace
in which a guest that the panic stopped may handle it itself.
"""

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final, assert_never

from panicd.rules.capability import Capability
from panicd.rules.on_crash import Action
from panicd.rules.policy import Decision, Reason, Situation
from panicd.rules.qapi import RunState
from panicd.rules.settings import DumpFormat, Policy, Timeouts

FLOOD_STOP: Final = 60.0  # seconds: the answer comes after all the panics not yet read


class OnFailure(StrEnum):
    """The consequence of a failed step."""

    CONTINUE = "continue"  # the next step is taken all the same
    FALL_BACK = "fall-back"  # the plan ends here and the policy's fallback is decided
    PRESERVE = "preserve"  # the plan ends here and the guest is left as it is


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that panicd does to a domain.

    Attributes:
        timeout: seconds until the step counts as failed.
        on_failure: the consequence of a failure.
        by_libvirt: libvirt runs the domain, so panicd asks libvirt; the monitor if it is silent.
    """

    timeout: float
    on_failure: OnFailure = OnFailure.FALL_BACK
    by_libvirt: bool = field(default=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class EnsureStopped(Step):
    """Wait until the guest has stopped; stop it if the panic did not (``stop``)."""


@dataclass(frozen=True, slots=True)
class Collect(Step):
    """Keep the panicked guest's evidence: its kernel log, its screen, its registers."""


@dataclass(frozen=True, slots=True)
class AwaitQuiet(Step):
    """Wait for the end of a migration, a block job or another dump: the action would abort it."""


@dataclass(frozen=True, slots=True)
class Dump(Step):
    """Write the guest's memory to a file (``dump-guest-memory``)."""

    format: DumpFormat = DumpFormat.ELF


@dataclass(frozen=True, slots=True)
class SystemReset(Step):
    """Reset the machine (``system_reset``); done when RESET came."""


@dataclass(frozen=True, slots=True)
class Cont(Step):
    """Let the guest run (``cont``); done when ``query-status`` says so."""


@dataclass(frozen=True, slots=True)
class Quit(Step):
    """End QEMU by its monitor (``quit``); done when the process is gone."""


@dataclass(frozen=True, slots=True)
class Terminate(Step):
    """End QEMU by SIGTERM, if it still runs."""


@dataclass(frozen=True, slots=True)
class Kill(Step):
    """End QEMU by SIGKILL, if it still runs."""


@dataclass(frozen=True, slots=True)
class RunRelaunch(Step):
    """Start the domain by a command, a systemd unit or libvirt; done when that reports success.

    Attributes:
        command: the command.
        unit: the unit, or a pattern of it.
        libvirt_uri: the libvirt's URI.
    """

    command: tuple[str, ...] = ()
    unit: str = ""
    libvirt_uri: str = ""


@dataclass(frozen=True, slots=True)
class AwaitReturn(Step):
    """Wait until the relaunched domain is connected again and runs."""


@dataclass(frozen=True, slots=True)
class AwaitGuestReset(Step):
    """Leave a guest alone that handles its panic itself; watch it until it resets or ends."""


AnyStep = (
    EnsureStopped
    | Collect
    | AwaitQuiet
    | Dump
    | SystemReset
    | Cont
    | Quit
    | Terminate
    | Kill
    | RunRelaunch
    | AwaitReturn
    | AwaitGuestReset
)


def told(step: AnyStep) -> str:
    """Return one sentence on what a step does."""
    first = (type(step).__doc__ or "").partition("\n\n")[0]
    return " ".join(first.replace("``", "`").split())


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps that carry out one decision, in order."""

    decision: Decision
    steps: tuple[AnyStep, ...]


def make_plan(
    decision: Decision, policy: Policy, capability: Capability, situation: Situation
) -> Plan:
    """Return the steps that carry out a decision."""
    # panicd never stops a guest that libvirt lets run: libvirt would not note it, nor resume it.
    left_running = decision.reason is Reason.LIBVIRT and capability.libvirt_lets_run
    if decision.reason is Reason.HELD or left_running:
        return Plan(decision, ())
    if situation.run_state is None:
        return Plan(decision, _relaunch(policy) if decision.relaunch else ())
    stop = EnsureStopped(max(policy.timeouts.stop, FLOOD_STOP if situation.flooded else 0.0))
    quiet = AwaitQuiet(policy.timeouts.quiet)
    collect = () if situation.reset else _collect(policy)
    first: tuple[AnyStep, ...] = (stop, *collect, quiet)
    dump = (_dump(policy, capability),) if decision.coredump else ()
    through = capability.has_monitor_beside_libvirt
    cont = Cont(policy.timeouts.resume, by_libvirt=capability.resumes_by_libvirt)
    end = _end(policy.timeouts, by_libvirt=through)
    match decision.action:
        case Action.PRESERVE | Action.NONE:
            return Plan(decision, (*first, *dump) if dump else (stop, *collect))
        case Action.DESTROY:
            ahead = replace(stop, on_failure=OnFailure.CONTINUE)
            return Plan(decision, (ahead, *collect, quiet, *dump, *end))
        case Action.RESTART if decision.relaunch:
            return Plan(decision, (*first, *dump, *end, *_relaunch(policy)))
        case Action.RESTART:
            reset = SystemReset(policy.timeouts.reset, by_libvirt=through)
            return Plan(decision, (*first, *dump, reset, cont))
        case Action.RELEASE:
            return Plan(decision, (*first, *dump, cont))
        case Action.GRACE:
            return Plan(decision, _grace(decision, policy, situation, first, cont))
        case Action.IGNORE:
            return Plan(decision, _ignore(policy, situation, dump, cont))
        case _:
            assert_never(decision.action)


def _grace(
    decision: Decision,
    policy: Policy,
    situation: Situation,
    first: tuple[AnyStep, ...],
    cont: Cont,
) -> tuple[AnyStep, ...]:
    kdump = decision.reason is Reason.KDUMP
    watch = AwaitGuestReset(policy.kdump_timeout if kdump else policy.grace)
    stopped = situation.run_state is RunState.GUEST_PANICKED
    return (*first, cont, watch) if stopped else (watch,)


def _collect(policy: Policy) -> tuple[Collect, ...]:
    evidence = policy.evidence
    return (Collect(evidence.budget, OnFailure.CONTINUE),) if evidence is not None else ()


def _dump(policy: Policy, capability: Capability) -> Dump:
    wanted = policy.coredump.format
    return Dump(
        policy.coredump.timeout,
        OnFailure.PRESERVE if policy.coredump.required else OnFailure.CONTINUE,
        by_libvirt=capability.has_monitor_beside_libvirt,
        format=wanted if wanted.of_qemu in capability.dump_formats else DumpFormat.ELF,
    )


def _end(timeouts: Timeouts, *, by_libvirt: bool) -> tuple[Quit, Terminate, Kill]:
    return (
        Quit(timeouts.quit, OnFailure.CONTINUE, by_libvirt=by_libvirt),
        Terminate(timeouts.terminate, OnFailure.CONTINUE),
        Kill(timeouts.kill),
    )


def _relaunch(policy: Policy) -> tuple[AnyStep, ...]:
    if policy.relaunch is None:
        return ()
    relaunch = policy.relaunch
    run = RunRelaunch(
        relaunch.timeout,
        command=relaunch.command,
        unit=relaunch.unit,
        libvirt_uri=relaunch.libvirt_uri,
    )
    return (run, AwaitReturn(relaunch.timeout))


def _ignore(
    policy: Policy, situation: Situation, dump: tuple[Dump, ...], cont: Cont
) -> tuple[AnyStep, ...]:
    """Return no steps for a guest that runs on; if others stopped it, it stays stopped."""
    assert situation.run_state is not None
    stop, quiet = EnsureStopped(policy.timeouts.stop), AwaitQuiet(policy.timeouts.quiet)
    collect = () if situation.again else _collect(policy)
    first: tuple[AnyStep, ...] = (stop, *collect, quiet)
    stopped_by_panic = situation.run_state is RunState.GUEST_PANICKED
    if stopped_by_panic or (dump and situation.run_state.executes):
        return (*first, *dump, cont)
    return (*first, *dump) if dump else ()
