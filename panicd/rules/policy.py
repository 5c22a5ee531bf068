"""The decision about a panic: ``decide``, a synchronous function of values.

Every decision carries an enumerated ``Reason``, which reappears word for word in the log, the
journal and the metrics.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from panicd.rules.budget import balance
from panicd.rules.capability import UNREQUESTED, Capability, PanicSetting
from panicd.rules.on_crash import Action, OnCrash
from panicd.rules.qapi import PanicInformation, RunState
from panicd.rules.settings import PanicNotifier, Policy


class Reason(StrEnum):
    """The reason for a decision."""

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
    STORM = "storm"
    FLOOD = "flood"
    HELD = "held"
    JOURNAL = "journal"
    LIBVIRT = "libvirt"
    OPERATOR = "operator"
    GRACE = "grace"
    NO_GRACE = "no-grace"
    GRACE_OVER = "grace-over"
    KDUMP = "kdump"
    KDUMP_STUCK = "kdump-stuck"


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
    Reason.BUDGET_SPENT: "all restarts that restart.max allows are used: restart.then applies",
    Reason.CRASH_LOOP: "all restarts that restart.max allows are used, and it panicked less than "
    "restart.min_uptime after the last one",
    Reason.ACTION_FAILED: "the action before this one failed: the fallback applies",
    Reason.DUMP_FAILED: "the dump failed and is required: the guest is preserved",
    Reason.STORM: "many domains of this host panicked at once, so the host is the likely cause: "
    "the guest is preserved for an operator",
    Reason.FLOOD: "it panicked more often than ignore allows: the guest is stopped and preserved",
    Reason.HELD: "an operator suspended automation: nothing is done until the hold ends",
    Reason.JOURNAL: "the journal can't be written, or was damaged, so panicd does not know what it "
    "did before: the guest is preserved",
    Reason.LIBVIRT: "libvirt acts on this VM's panics before panicd can: have libvirt preserve it, "
    "by libvirt.take_over or by virsh set-lifecycle-action DOMAIN crash preserve",
    Reason.OPERATOR: "an operator asked for it",
    Reason.GRACE: "the guest may dump and reset itself first: panicd watches it",
    Reason.NO_GRACE: "the guest can't run after its panic (QEMU refuses it, or it failed), so it "
    "gets no grace: on_crash applies",
    Reason.GRACE_OVER: "the guest did not reset itself within its grace: on_crash applies",
    Reason.KDUMP: "the guest handles its panic itself, by kdump: panicd watches it",
    Reason.KDUMP_STUCK: "the guest did not reset itself within kdump_timeout: on_crash applies",
}

FALLBACK_REASONS: Final = frozenset(Reason) - {
    Reason.ON_CRASH,
    Reason.UNREQUESTED_DEVICE,
    Reason.HELD,
    Reason.OPERATOR,
    Reason.GRACE,
    Reason.NO_GRACE,
    Reason.GRACE_OVER,
    Reason.KDUMP,
    Reason.KDUMP_STUCK,
}
WATCHING: Final = frozenset({Reason.GRACE, Reason.KDUMP})
"""The reasons to leave a guest to itself for a while."""
DESTRUCTIVE: Final = frozenset({Action.DESTROY, Action.RESTART})


@dataclass(frozen=True, slots=True)
class Situation:
    """A panicked domain as it stands when the decision is made.

    Attributes:
        run_state: the run state after the panic (``running`` where QEMU does not stop the guest);
            None if QEMU is gone or about to end.
        information: the panic's payload, where there is one.
        restarts: when panicd restarted this domain, in seconds since the epoch.
        held: an operator suspended automation.
        storm: many domains panicked at once, and panicd leaves destructive actions to people.
        unrecorded: panicd does not know its earlier actions, and waits until it does.
        kdump: the guest says that it handles its panic itself.
        own_time: why the guest gets no more time of its own to handle its panic; None: it has had
            none yet.
        flooded: it panicked so often that many panics may not yet have been read.
        reset: somebody else has reset the guest since its panic, and not let it run.
        again: panicd ignored an earlier panic of this incident, and took evidence then.
    """

    run_state: RunState | None
    information: PanicInformation | None = None
    restarts: tuple[float, ...] = ()
    held: bool = False
    storm: bool = False
    unrecorded: bool = False
    kdump: bool = False
    own_time: Reason | None = None
    flooded: bool = False
    reset: bool = False
    again: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """The action, and the reason for it.

    Attributes:
        wanted: the ``on_crash`` that applies to this domain, or its ``unrequested``.
        action: the action that panicd takes.
        coredump: whether panicd dumps the memory first.
        reason: the reason for ``action``.
        relaunch: for ``restart`` panicd ends QEMU, if it is still there, and starts it anew.
        set_aside: the domain's ``on_crash``, if ``wanted`` is its ``unrequested``; else None.
    """

    wanted: OnCrash
    action: Action
    coredump: bool
    reason: Reason
    relaunch: bool = False
    set_aside: OnCrash | None = None

    @property
    def on_crash(self) -> OnCrash:
        """The domain's ``on_crash``, even where ``unrequested`` applies."""
        return self.set_aside or self.wanted

    @property
    def unrequested(self) -> OnCrash | None:
        """The policy for a panic device nobody asked for; None: ``on_crash`` itself applies."""
        return self.wanted if self.set_aside else None

    @property
    def is_fallback(self) -> bool:
        """Whether the action is another than the policy's own."""
        return self.reason in FALLBACK_REASONS

    @property
    def effective(self) -> str:
        """The decision in the vocabulary of ``on_crash``."""
        return f"coredump-{self.action}" if self.coredump else str(self.action)


_MIGRATION_STATES: Final = frozenset(
    {RunState.INMIGRATE, RunState.POSTMIGRATE, RunState.FINISH_MIGRATE, RunState.COLO}
)
_STOPPED_BY_OTHERS_STATES: Final = frozenset(
    {
        RunState.PAUSED,
        RunState.PRELAUNCH,
        RunState.IO_ERROR,
        RunState.WATCHDOG,
        RunState.SAVE_VM,
        RunState.RESTORE_VM,
        RunState.DEBUG,
    }
)


def applicable(
    policy: Policy, capability: Capability, information: PanicInformation | None
) -> tuple[OnCrash, Reason]:
    """Return the ``on_crash`` that applies to a domain, and why: the notifier's gate.

    A panic with a payload did not come from pvpanic. Hyper-V's MSRs, s390 and TDX report only in
    VMs that were built to report, so they count as asked for.
    """
    gated = policy.panic_notifier is PanicNotifier.REQUIRED and information is None
    if gated and capability.panic_device in UNREQUESTED:
        return policy.unrequested, Reason.UNREQUESTED_DEVICE
    return policy.on_crash, Reason.ON_CRASH


def panic_setting(
    policy: Policy, capability: Capability, decision: Decision | None
) -> PanicSetting:
    """Return QEMU's setting for the next panic, which does not stop a guest in its grace again.

    Args:
        policy: the domain's configuration.
        capability: what its QEMU can do.
        decision: the decision in force about an earlier panic; None: there is none.
    """
    wanted, _ = applicable(policy, capability, None)
    # libvirt takes a panicked guest for stopped, even while it runs. If libvirt lets panicked
    # guests run, it never notes that one was stopped.
    runs_on = (
        wanted is OnCrash.IGNORE if capability.libvirt is None else capability.libvirt_lets_run
    )
    in_grace = decision is not None and decision.reason is Reason.GRACE
    return PanicSetting.NONE if runs_on or in_grace else PanicSetting.PAUSE


def decide(policy: Policy, capability: Capability, situation: Situation, *, now: float) -> Decision:
    """Return the decision about a panic.

    Args:
        policy: the domain's configuration.
        capability: what its QEMU can do, as far as is known.
        situation: the domain as it stands.
        now: seconds since the epoch.
    """
    decision = _decide(policy, capability, situation, now)
    _, reason = applicable(policy, capability, situation.information)
    set_aside = policy.on_crash if reason is Reason.UNREQUESTED_DEVICE else None
    return replace(decision, set_aside=set_aside)


def _decide(
    policy: Policy,
    capability: Capability,
    situation: Situation,
    now: float,
) -> Decision:
    wanted, reason = applicable(policy, capability, situation.information)
    own_hands = _own_hands(policy, capability, situation, wanted)
    if own_hands in WATCHING:
        return Decision(wanted, Action.GRACE, coredump=False, reason=own_hands)
    if reason is Reason.ON_CRASH and own_hands is not None:
        reason = own_hands
    obeyed = Decision(wanted, wanted.action, wanted.coredump, reason)
    if situation.held:
        return Decision(wanted, Action.PRESERVE, coredump=False, reason=Reason.HELD)
    if situation.run_state is None:
        decision = _without_qemu(policy, situation, obeyed, now)
    elif capability.libvirt_forestalls(wanted):
        return Decision(wanted, Action.PRESERVE, coredump=False, reason=Reason.LIBVIRT)
    elif wanted.action is Action.RESTART:
        decision = _restart(policy, capability, situation, obeyed, now)
    elif wanted.action is Action.IGNORE:
        decision = _ignore(policy, capability, situation, obeyed, now)
    else:
        decision = obeyed
    return restrain(decision, situation)


def _own_hands(
    policy: Policy, capability: Capability, situation: Situation, wanted: OnCrash
) -> Reason | None:
    """Return why the guest may handle its panic itself, or why not; None: no question of that.

    panicd only watches a kdump, even of a held domain: it does nothing to the guest.
    """
    state = situation.run_state
    if state is None or situation.own_time is not None:
        return situation.own_time
    if situation.kdump and state is not RunState.GUEST_PANICKED:
        return Reason.KDUMP
    given = policy.grace > 0 and wanted.action is not Action.IGNORE
    if not given or situation.held or capability.libvirt_acts:
        return None
    if state is RunState.GUEST_PANICKED:
        return Reason.GRACE if capability.reversible else Reason.NO_GRACE
    return Reason.GRACE if state is RunState.RUNNING else None


def restrain(decision: Decision, situation: Situation) -> Decision:
    """Return a decision, or preserve if panicd must not carry that decision out now."""
    if decision.action not in DESTRUCTIVE:
        return decision
    if situation.unrecorded:
        reason = Reason.JOURNAL
    elif situation.storm:
        reason = Reason.STORM
    else:
        return decision
    return replace(decision, action=Action.PRESERVE, coredump=False, reason=reason, relaunch=False)


def while_unwritten(decision: Decision, situation: Situation) -> Decision:
    """Return a decision's substitute while panicd waits for a journal that it can't write.

    panicd does nothing to a guest without a record. It decides anew once it can write one.
    """
    executes = situation.run_state is not None and situation.run_state.executes
    runs_on = decision.action is Action.IGNORE and executes and not decision.coredump
    if decision.action is Action.NONE or decision.reason is Reason.HELD or runs_on:
        return decision
    action, reason = Action.PRESERVE, Reason.JOURNAL
    return replace(decision, action=action, coredump=False, reason=reason, relaunch=False)


class ImpossibleError(Exception):
    """An operator's request is impossible; the message says why."""


def decide_for_operator(
    policy: Policy, capability: Capability, situation: Situation, action: OnCrash | None
) -> Decision:
    """Return the decision for an operator's request; no budget, hold or storm limits it.

    Args:
        policy: the domain's configuration.
        capability: what its QEMU can do.
        situation: the domain as it stands.
        action: the action to take; None releases the guest: it runs on as it is.

    Raises:
        ImpossibleError: the action is impossible.
    """
    if situation.run_state is None:
        raise ImpossibleError("QEMU is gone")
    if situation.run_state in _MIGRATION_STATES:
        raise ImpossibleError(EXPLANATIONS[Reason.MIGRATION])
    leaves = action is not None and (
        action.coredump or action.action in {Action.PRESERVE, Action.IGNORE}
    )
    if situation.reset and leaves:
        raise ImpossibleError(
            "somebody else has reset the guest, so nothing is left of its panic: release, restart "
            "or destroy it"
        )
    if action is None or action.action is Action.IGNORE:
        if situation.run_state.executes:
            raise ImpossibleError("the guest runs already")
        if situation.run_state is RunState.GUEST_PANICKED and not capability.reversible:
            raise ImpossibleError("this QEMU refuses to resume a panicked guest")
        wanted = action or OnCrash.IGNORE
        return Decision(wanted, Action.RELEASE, wanted.coredump, Reason.OPERATOR)
    relaunch = action.action is Action.RESTART and not capability.can_reset
    if relaunch and policy.relaunch is None:
        raise ImpossibleError("this QEMU ends instead of resetting, and no relaunch is configured")
    return Decision(action, action.action, action.coredump, Reason.OPERATOR, relaunch)


def fall_back(
    policy: Policy,
    capability: Capability,
    situation: Situation,
    failed: Decision,
    reason: Reason,
    *,
    now: float,
) -> Decision:
    """Return the decision after one that can't be obeyed, or whose plan failed.

    If the fallback can't be obeyed either, or fails, the guest stays as it is. It also does if a
    required dump failed, since its memory is then the only evidence. An operator's request has no
    fallback: the fallback is the policy's.

    Args:
        policy: the domain's configuration.
        capability: what its QEMU can do, according to the failure too.
        situation: the domain as it stands now.
        failed: the decision that panicd gives up.
        reason: the reason for that, one of ``FALLBACK_REASONS``.
        now: seconds since the epoch.
    """
    action = policy.fallback
    given_up = failed.is_fallback or failed.reason is Reason.OPERATOR or action is failed.action
    suspended = situation.held or situation.storm
    if given_up or suspended or reason is Reason.DUMP_FAILED:
        action = Action.PRESERVE
    if action is Action.RESTART and not _restartable(policy, capability, situation, now):
        action = Action.PRESERVE
    return replace(failed, action=action, reason=reason, relaunch=False)


def ignore_again(
    policy: Policy,
    capability: Capability,
    situation: Situation,
    ignored: Decision,
    *,
    now: float,
) -> Decision:
    """Return the decision about an ignored guest that a further panic stops.

    panicd lets it run again, each time. A configured dump was made at the first panic.

    Args:
        policy: the domain's configuration.
        capability: what its QEMU can do.
        situation: the domain as it stands, stopped by this panic.
        ignored: the decision in force.
        now: seconds since the epoch.
    """
    again = replace(ignored, coredump=False)
    if situation.held:
        return replace(again, action=Action.PRESERVE, reason=Reason.HELD)
    if capability.libvirt_forestalls(ignored.wanted):
        return replace(again, action=Action.PRESERVE, reason=Reason.LIBVIRT)
    decision = _ignore(policy, capability, situation, again, now)
    return replace(decision, set_aside=ignored.set_aside)


def end_flood(ignored: Decision) -> Decision:
    """Return the decision about a guest whose ignored panics have become too many."""
    return replace(ignored, action=Action.PRESERVE, coredump=False, reason=Reason.FLOOD)


def _restartable(policy: Policy, capability: Capability, situation: Situation, now: float) -> bool:
    """Whether a guest may be restarted where ``restart`` is the fallback."""
    theirs = _MIGRATION_STATES | _STOPPED_BY_OTHERS_STATES
    return (
        capability.can_reset
        and situation.run_state is not None
        and situation.run_state not in theirs
        and not balance(policy.restart, situation.restarts, now).spent
    )


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
        reason = Reason.STOPPED_BY_OTHERS
        return fall_back(policy, capability, situation, obeyed, reason, now=now)
    left = balance(policy.restart, situation.restarts, now)
    if left.spent:
        reason = Reason.CRASH_LOOP if left.looping else Reason.BUDGET_SPENT
        return Decision(obeyed.wanted, policy.restart.then, obeyed.coredump, reason)
    if capability.can_reset:
        return obeyed
    if policy.relaunch is None:
        reason = Reason.RESET_IMPOSSIBLE
        return fall_back(policy, capability, situation, obeyed, reason, now=now)
    return Decision(obeyed.wanted, Action.RESTART, obeyed.coredump, obeyed.reason, relaunch=True)


def _ignore(
    policy: Policy, capability: Capability, situation: Situation, obeyed: Decision, now: float
) -> Decision:
    if situation.run_state in _MIGRATION_STATES:
        return Decision(obeyed.wanted, Action.PRESERVE, obeyed.coredump, Reason.MIGRATION)
    if situation.run_state is RunState.GUEST_PANICKED and not capability.reversible:
        reason = Reason.IRREVERSIBLE
        return fall_back(policy, capability, situation, obeyed, reason, now=now)
    return obeyed
