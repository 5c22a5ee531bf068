"""What no policy, capability, situation and history may ever lead to."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from panicd.rules.budget import balance
from panicd.rules.capability import Capability
from panicd.rules.on_crash import Action, OnCrash
from panicd.rules.plan import (
    AwaitGuestReset,
    AwaitQuiet,
    AwaitReturn,
    Collect,
    Cont,
    Dump,
    EnsureStopped,
    Kill,
    Plan,
    Quit,
    RunRelaunch,
    SystemReset,
    Terminate,
    make_plan,
)
from panicd.rules.policy import (
    EXPLANATIONS,
    FALLBACK_REASONS,
    Decision,
    ImpossibleError,
    Reason,
    Situation,
    decide,
    decide_for_operator,
    fall_back,
    ignore_again,
    while_unwritten,
)
from panicd.rules.qapi import RunState
from panicd.rules.settings import Policy
from tests.rules.strategies import NOW, capabilities, policies, situations

MIGRATING = {RunState.INMIGRATE, RunState.POSTMIGRATE, RunState.FINISH_MIGRATE, RunState.COLO}
STOPPED_BY_OTHERS = {
    RunState.PAUSED,
    RunState.PRELAUNCH,
    RunState.IO_ERROR,
    RunState.WATCHDOG,
    RunState.SAVE_VM,
    RunState.RESTORE_VM,
    RunState.DEBUG,
}
DESTRUCTIVE = (SystemReset, Quit, Terminate, Kill)

fallback_reasons = st.sampled_from([Reason.ACTION_FAILED, Reason.DUMP_FAILED])


ignored = st.builds(
    Decision,
    st.sampled_from(OnCrash),
    st.just(Action.IGNORE),
    st.booleans(),
    st.sampled_from([Reason.ON_CRASH, Reason.UNREQUESTED_DEVICE, Reason.ACTION_FAILED]),
)


def kinds(plan: Plan) -> list[type]:
    return [type(step) for step in plan.steps]


def check(
    plan: Plan, policy: Policy, capability: Capability, situation: Situation, *, operator: bool
) -> None:
    """Assert what holds for every plan."""
    order = kinds(plan)
    assert EXPLANATIONS[plan.decision.reason]
    assert all(step.timeout > 0 for step in plan.steps)
    check_cont(plan, capability, situation)
    check_watch(plan, policy, situation)
    check_dump(plan, situation)
    if situation.run_state is None:
        assert order in ([], [RunRelaunch, AwaitReturn])
    if any(kind in order for kind in (Dump, *DESTRUCTIVE, Cont)):
        assert order[:2] == [EnsureStopped, AwaitQuiet]
    if plan.decision.action is Action.DESTROY and situation.run_state is not None:
        assert order[-3:] == [Quit, Terminate, Kill]
    if AwaitReturn in order:
        assert order[-2:] == [RunRelaunch, AwaitReturn]
        assert situation.run_state is None or order[-5:-2] == [Quit, Terminate, Kill]
    if not operator:
        if SystemReset in order or RunRelaunch in order:
            assert not balance(policy.restart, situation.restarts, NOW).spent
        if situation.held or situation.storm:
            assert not any(kind in order for kind in (*DESTRUCTIVE, RunRelaunch))


def check_cont(plan: Plan, capability: Capability, situation: Situation) -> None:
    """Assert that the guest is let run once at most, and only where it may be."""
    order = kinds(plan)
    if Cont not in order:
        return
    assert order.count(Cont) == 1
    assert situation.run_state not in MIGRATING
    if plan.decision.action is Action.GRACE:
        assert order[-2:] == [Cont, AwaitGuestReset]
        assert situation.run_state is RunState.GUEST_PANICKED
        assert capability.reversible
        assert situation.own_time is None
        return
    assert order[-1] is Cont
    if SystemReset in order:
        assert order.index(SystemReset) == len(order) - 2
        assert plan.decision.action is Action.RESTART
        if plan.decision.reason is not Reason.OPERATOR:
            assert situation.run_state not in STOPPED_BY_OTHERS
        return
    if plan.decision.action is Action.RELEASE:
        assert plan.decision.reason is Reason.OPERATOR
        panicked = situation.run_state is RunState.GUEST_PANICKED
        assert capability.reversible or not panicked
        return
    assert plan.decision.action is Action.IGNORE
    resumed = situation.run_state is RunState.GUEST_PANICKED and capability.reversible
    assert situation.run_state is not None
    stopped_for_dump = situation.run_state.executes and Dump in order
    assert resumed or stopped_for_dump


def check_watch(plan: Plan, policy: Policy, situation: Situation) -> None:
    """Assert that a guest is left to itself once at most, and nothing is done to one that runs."""
    order = kinds(plan)
    watched = plan.decision.action is Action.GRACE
    assert (AwaitGuestReset in order) == watched
    if not watched:
        return
    assert situation.own_time is None
    assert policy.grace or situation.kdump
    assert order[-1] is AwaitGuestReset
    assert not any(kind in order for kind in (Dump, *DESTRUCTIVE))
    assert situation.run_state is RunState.GUEST_PANICKED or order == [AwaitGuestReset]


def check_dump(plan: Plan, situation: Situation) -> None:
    """Assert that memory is kept before whatever loses it."""
    order = kinds(plan)
    wanted = plan.decision.coredump and situation.run_state is not None
    assert order.count(Dump) == wanted
    if wanted:
        losing = (*DESTRUCTIVE, Cont)
        assert all(order.index(Dump) < i for i, kind in enumerate(order) if kind in losing)


@given(policies, capabilities, situations)
def test_every_panic_has_a_decision_and_a_plan(
    policy: Policy, capability: Capability, situation: Situation
) -> None:
    decision = decide(policy, capability, situation, now=NOW)
    plan = make_plan(decision, policy, capability, situation)
    check(plan, policy, capability, situation, operator=False)
    assert decision.wanted in {policy.on_crash, policy.unrequested}
    suspended = decision.reason in {Reason.HELD, Reason.STORM, Reason.LIBVIRT}
    to_itself = decision.action is Action.GRACE
    dumpable = situation.run_state is not None and not suspended and not to_itself
    assert decision.coredump == (decision.wanted.coredump and dumpable)


@given(policies, capabilities, situations, st.lists(fallback_reasons, min_size=2, max_size=2))
def test_what_fails_is_preserved_in_the_end(
    policy: Policy, capability: Capability, situation: Situation, reasons: list[Reason]
) -> None:
    decision = decide(policy, capability, situation, now=NOW)
    for reason in reasons:
        decision = fall_back(policy, capability, situation, decision, reason, now=NOW)
        assert decision.reason in FALLBACK_REASONS
        plan = make_plan(decision, policy, capability, situation)
        check(plan, policy, capability, situation, operator=False)
    assert decision.action is Action.PRESERVE


@given(policies, capabilities, situations, ignored, st.integers(1, 5))
def test_ignored_guest_is_let_run_once_for_each_stop_by_a_panic(
    policy: Policy, capability: Capability, situation: Situation, decision: Decision, stops: int
) -> None:
    for _ in range(stops):
        wanted = decision.wanted
        decision = ignore_again(policy, capability, situation, decision, now=NOW)
        plan = make_plan(decision, policy, capability, situation)
        check(plan, policy, capability, situation, operator=False)
        assert decision.wanted is wanted
        assert Dump not in kinds(plan), "its memory was dumped at the first panic"
        stopped = situation.run_state is RunState.GUEST_PANICKED
        obeyed = decision.action is Action.IGNORE
        assert kinds(plan).count(Cont) == (stopped and obeyed)
        if not obeyed:
            return
    forestalled = capability.libvirt_forestalls(decision.wanted)
    assert not situation.held
    assert not forestalled


@given(policies, capabilities, situations, ignored)
def test_held_guest_is_not_let_run_again(
    policy: Policy, capability: Capability, situation: Situation, ignored: Decision
) -> None:
    held = replace(situation, held=True)
    decision = ignore_again(policy, capability, held, ignored, now=NOW)
    assert decision.reason is Reason.HELD
    assert make_plan(decision, policy, capability, held).steps == ()


@given(policies, capabilities, situations, st.none() | st.sampled_from(OnCrash))
def test_what_operators_ask_for(
    policy: Policy, capability: Capability, situation: Situation, asked: OnCrash | None
) -> None:
    try:
        decision = decide_for_operator(policy, capability, situation, asked)
    except ImpossibleError:
        return
    plan = make_plan(decision, policy, capability, situation)
    check(plan, policy, capability, situation, operator=True)
    follows = fall_back(policy, capability, situation, decision, Reason.ACTION_FAILED, now=NOW)
    assert follows.action is Action.PRESERVE


@given(policies, capabilities, situations)
def test_a_decision_is_made_of_values_alone(
    policy: Policy, capability: Capability, situation: Situation
) -> None:
    first: Decision = decide(policy, capability, situation, now=NOW)
    assert decide(policy, capability, situation, now=NOW) == first


@given(policies, capabilities, situations)
def test_nothing_is_foreseen_to_be_done_without_a_record(
    policy: Policy, capability: Capability, situation: Situation
) -> None:
    """What a decision comes to while the journal can't be written changes no guest."""
    decided = decide(policy, capability, situation, now=NOW)
    foreseen = while_unwritten(decided, situation)
    plan = make_plan(foreseen, policy, capability, situation)
    assert set(kinds(plan)) <= {EnsureStopped, Collect}
    assert foreseen == decided or foreseen.reason is Reason.JOURNAL
