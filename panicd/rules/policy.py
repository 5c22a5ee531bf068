"""What to do about a panic: ``decide``, a synchronous function of values.

Every decision carries an enumerated ``Reason``, which reappears word for word in the log, the
journal and the metrics.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from panicd.rules.budget import balance
from panicd.rules.capability import Capability, PanicDevice
from panicd.rules.on_crash import Action, OnCrash
from panicd.rules.qapi import PanicInformation, RunState
from panicd.rules.settings import PanicNotifier, Policy


class Reason(StrEnum):
    """Why a decision is what it is."""

    ON_CRASH = "on-crash"
    UNREQUESTED_DEVICE = "unrequested-device"
    QEMU_EXITED = "qemu-exited"
    IRREVERSIBLE = "irreversible"
    RESET_IMPOSSIBLE = "reset-impossible"
    STOPPED_BY_OTHERS = "stopped-by-others"
    MIGRATION = "migration"
    BUDGET_SPENT = "budget-spent"
    CRASH_LOOP = "crash-loop"
    ACTION_FAILED = "action-failed"
    DUMP_FAILED = "dump-failed"


EXPLANATIONS: Final[dict[Reason, str]] = {
    Reason.ON_CRASH: "on_crash applies as configured",
    Reason.UNREQUESTED_DEVICE: "nobody asked for this VM's panic device: 'unrequested' applies",
    Reason.QEMU_EXITED: "QEMU ended with the panic, so there is no guest left to act on",
    Reason.IRREVERSIBLE: "this QEMU refuses to resume a panicked guest: the fallback applies",
    Reason.RESET_IMPOSSIBLE: "this QEMU ends instead of resetting, and no relaunch is configured: "
    "the fallback applies",
    Reason.STOPPED_BY_OTHERS: "somebody else had stopped the guest before it panicked, and may "
    "want it so: the fallback applies",
    Reason.MIGRATION: "the guest is being migrated, or was: running it here could run it twice",
    Reason.BUDGET_SPENT: "the restart budget is spent: restart.then applies",
    Reason.CRASH_LOOP: "it panics soon after each restart and the budget is spent: restart.then "
    "applies",
    Reason.ACTION_FAILED: "the action before this one failed: the fallback applies",
    Reason.DUMP_FAILED: "the dump failed and is required: the guest is preserved",
}

FALLBACK_REASONS: Final = frozenset(Reason) - {Reason.ON_CRASH, Reason.UNREQUESTED_DEVICE}


@dataclass(frozen=True, slots=True)
class Situation:
    """A panicked domain as it stands when the decision is made.

    Attributes:
        run_state: the state that the panic leaves the guest in (``running`` where QEMU does not
            stop it); None where QEMU is gone or is about to be.
        information: the panic's payload, where there is one.
        restarts: when panicd restarted this domain, in seconds since the epoch.
    """

    run_state: RunState | None
    information: PanicInformation | None = None
    restarts: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """What will be done, and why.

    Attributes:
        wanted: the ``on_crash`` that applies to this domain.
        action: what is done.
        coredump: whether memory is dumped first.
        reason: why ``action`` is what it is.
        relaunch: ``restart`` is done by ending QEMU, if it is still there, and starting it anew.
    """

    wanted: OnCrash
    action: Action
    coredump: bool
    reason: Reason
    relaunch: bool = False

    @property
    def is_fallback(self) -> bool:
        """Whether something else than the policy's own action is done."""
        return self.reason in FALLBACK_REASONS

    @property
    def effective(self) -> str:
        """The decision in the vocabulary of ``on_crash``."""
        return f"coredump-{self.action}" if self.coredump else str(self.action)


_MIGRATION_STATES: Final = frozenset(
    {RunState.INMIGRATE, RunState.POSTMIGRATE, RunState.FINISH_MIGRATE}
)
_STOPPED_BY_OTHERS_STATES: Final = frozenset(
    {RunState.PAUSED, RunState.PRELAUNCH, RunState.IO_ERROR, RunState.WATCHDOG, RunState.SAVE_VM}
)


def applicable(
    policy: Policy, capability: Capability, information: PanicInformation | None
) -> tuple[OnCrash, Reason]:
    """Return the ``on_crash`` that applies to a domain, and why: the notifier's gate.

    A panic that came with a payload did not come from pvpanic: Hyper-V's MSRs, s390 and TDX report
    only in VMs that were built to report, so they count as asked for.
    """
    gated = policy.panic_notifier is PanicNotifier.REQUIRED and information is None
    if gated and capability.panic_device is PanicDevice.BUILTIN:
        return policy.unrequested, Reason.UNREQUESTED_DEVICE
    return policy.on_crash, Reason.ON_CRASH


def decide(policy: Policy, capability: Capability, situation: Situation, *, now: float) -> Decision:
    """Return what is to be done about a panic.

    Args:
        policy: the domain's configuration.
        capability: what its QEMU can do, as far as is known.
        situation: the domain as it stands.
        now: seconds since the epoch.
    """
    wanted, reason = applicable(policy, capability, situation.information)
    obeyed = Decision(wanted, wanted.action, wanted.coredump, reason)
    if situation.run_state is None:
        return _without_qemu(policy, situation, obeyed, now)
    match wanted.action:
        case Action.RESTART:
            return _restart(policy, capability, situation, obeyed, now)
        case Action.IGNORE:
            return _ignore(policy, capability, situation, obeyed)
        case _:
            return obeyed


def fall_back(policy: Policy, capability: Capability, failed: Decision, reason: Reason) -> Decision:
    """Return what follows a decision that can't be obeyed, or whose plan failed.

    A fallback that can't be obeyed either, or that fails, leaves the guest as it is; a required
    dump that failed does so too, for the guest's memory is then the only evidence.

    Args:
        policy: the domain's configuration.
        capability: what its QEMU can do, with what the failure has taught.
        failed: the decision that is given up.
        reason: why, one of ``FALLBACK_REASONS``.
    """
    action = policy.fallback
    if failed.is_fallback or reason is Reason.DUMP_FAILED or action is failed.action:
        action = Action.PRESERVE
    if action is Action.RESTART and not capability.can_reset:
        action = Action.PRESERVE
    return Decision(failed.wanted, action, failed.coredump, reason)


def _without_qemu(policy: Policy, situation: Situation, obeyed: Decision, now: float) -> Decision:
    relaunch = (
        obeyed.action is Action.RESTART
        and policy.relaunch is not None
        and not balance(policy.restart, situation.restarts, now).spent
    )
    action = Action.RESTART if relaunch else Action.NONE
    return Decision(
        obeyed.wanted, action, coredump=False, reason=Reason.QEMU_EXITED, relaunch=relaunch
    )


def _restart(
    policy: Policy, capability: Capability, situation: Situation, obeyed: Decision, now: float
) -> Decision:
    if situation.run_state in _MIGRATION_STATES:
        return Decision(obeyed.wanted, Action.PRESERVE, obeyed.coredump, Reason.MIGRATION)
    if situation.run_state in _STOPPED_BY_OTHERS_STATES:
        return fall_back(policy, capability, obeyed, Reason.STOPPED_BY_OTHERS)
    left = balance(policy.restart, situation.restarts, now)
    if left.spent:
        reason = Reason.CRASH_LOOP if left.looping else Reason.BUDGET_SPENT
        return Decision(obeyed.wanted, policy.restart.then, obeyed.coredump, reason)
    if capability.can_reset:
        return obeyed
    if policy.relaunch is None:
        return fall_back(policy, capability, obeyed, Reason.RESET_IMPOSSIBLE)
    return Decision(obeyed.wanted, Action.RESTART, obeyed.coredump, obeyed.reason, relaunch=True)


def _ignore(
    policy: Policy, capability: Capability, situation: Situation, obeyed: Decision
) -> Decision:
    if situation.run_state in _MIGRATION_STATES:
        return Decision(obeyed.wanted, Action.PRESERVE, obeyed.coredump, Reason.MIGRATION)
    if situation.run_state is RunState.GUEST_PANICKED and not capability.reversible:
        return fall_back(policy, capability, obeyed, Reason.IRREVERSIBLE)
    return obeyed
