from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
from hypothesis import given

from panicd.rules.capability import Capability, Version
from panicd.rules.incident import (
    Decided,
    Incident,
    Opened,
    Outcome,
    Settled,
    Source,
    State,
    StepBegun,
    StepEnded,
    apply,
)
from panicd.rules.on_crash import Action, OnCrash
from panicd.rules.plan import (
    AnyStep,
    AwaitGuestReset,
    AwaitReturn,
    Cont,
    Plan,
    RunRelaunch,
    SystemReset,
    make_plan,
)
from panicd.rules.policy import Decision, Reason, Situation, decide
from panicd.rules.qapi import RunState
from panicd.rules.recovery import End, Found, GiveUp, GoOn, Recovery, Redecide, Stay, recover
from panicd.rules.settings import Evidence, Policy
from tests.rules.strategies import (
    COREDUMP,
    MODERN,
    NOW,
    RELAUNCH,
    capabilities,
    policies,
    situations,
)

POLICY = Policy(COREDUMP, relaunch=RELAUNCH, grace=900.0)
REQUIRED = replace(POLICY, coredump=replace(COREDUMP, required=True))
COLLECTS = replace(POLICY, evidence=Evidence())
SETTLED = tuple(Settled(NOW, state) for state in (State.PRESERVED, State.RUNNING_ON, State.FAILED))
NEW = Incident("20270115T080000-00000000", Opened(NOW, "vm", "", "", "b/1/2", Source.EVENT))


def plan(
    effective: str,
    run_state: RunState | None = RunState.GUEST_PANICKED,
    reason: Reason = Reason.ON_CRASH,
    *,
    relaunch: bool = False,
    policy: Policy = POLICY,
) -> Plan:
    coredump = effective.startswith("coredump-")
    action = Action(effective.removeprefix("coredump-"))
    if action is Action.GRACE:
        reason = Reason.GRACE
    decision = Decision(OnCrash.PRESERVE, action, coredump, reason, relaunch)
    return make_plan(decision, policy, MODERN, Situation(run_state))


PLANS = {
    "destroy": plan("destroy"),
    "coredump-destroy": plan("coredump-destroy"),
    "restart": plan("restart"),
    "coredump-restart": plan("coredump-restart"),
    "relaunch": plan("restart", relaunch=True),
    "coredump-relaunch": plan("coredump-restart", relaunch=True),
    "preserve": plan("preserve"),
    "required-restart": plan("coredump-restart", policy=REQUIRED),
    "collect-restart": plan("restart", policy=COLLECTS),
    "coredump-preserve": plan("coredump-preserve"),
    "ignore": plan("ignore"),
    "coredump-ignore": plan("coredump-ignore"),
    "release": plan("release", reason=Reason.OPERATOR),
    "coredump-release": plan("coredump-release", reason=Reason.OPERATOR),
    "held": plan("preserve", reason=Reason.HELD),
    # Made for a guest that ran on, for one that others had paused, and for no guest at all.
    "ignore-running": plan("ignore", RunState.RUNNING),
    "coredump-ignore-running": plan("coredump-ignore", RunState.RUNNING),
    "coredump-ignore-paused": plan("coredump-ignore", RunState.PAUSED),
    "grace": plan("grace"),
    "grace-running": plan("grace", RunState.RUNNING),
    "gone": plan("none", None, Reason.QEMU_EXITED),
    "relaunch-gone": plan("restart", None, Reason.QEMU_EXITED, relaunch=True),
}


def incident(plan: Plan, progress: str) -> Incident:
    """Return an incident whose plan has come so far.

    Args:
        plan: the plan.
        progress: a step's name and how it ended (``?``: it was begun); those before it are done.
            ``-``: none was begun.
    """
    decided = apply(NEW, Decided(NOW, plan))
    if progress == "-":
        return decided
    name, outcome = progress.split()
    names = [type(step).__name__ for step in plan.steps]
    last = names.index(name)
    outcomes = [Outcome.DONE] * last + [None if outcome == "?" else Outcome(outcome)]
    return carried_out(decided, outcomes)


def carried_out(incident: Incident, outcomes: list[Outcome | None]) -> Incident:
    for index, outcome in enumerate(outcomes):
        incident = apply(incident, StepBegun(NOW, index))
        if outcome is not None:
            incident = apply(incident, StepEnded(NOW, index, outcome))
    return incident


def told(recovery: Recovery, plan: Plan) -> str:
    match recovery:
        case GoOn(index=index) if index == len(plan.steps):
            return "conclude"
        case GoOn(index=index):
            return type(plan.steps[index]).__name__
        case GiveUp(index=index):
            return f"give up {type(plan.steps[index]).__name__}"
        case Redecide():
            return "redecide"
        case Stay():
            return "stay"
        case End(ending=ending):
            return ending.value


@dataclass(frozen=True)
class Rows:
    """The same QEMU, found in one run state.

    Each line reads: the plan, how far it came (see ``incident``), and how it goes on where a reset
    leaves ``paused`` (before 1.7), what it was (before 2.6) and ``prelaunch``; one entry stands for
    all three.
    """

    run_states: tuple[str, ...]
    text: str


# A guest that is let run was reset for certain, or its policy is to ignore the panic. One that is
# reset or ended is the panicked one still.
TABLE = [
    Rows(("guest-panicked",), """
        restart                 -                 | EnsureStopped
        restart                 EnsureStopped ?   | EnsureStopped
        restart                 AwaitQuiet ?      | AwaitQuiet
        restart                 AwaitQuiet done   | AwaitQuiet
        restart                 SystemReset ?     | SystemReset
        restart                 SystemReset unknown | SystemReset
        restart                 SystemReset done  | restarted | SystemReset | restarted
        restart                 Cont ?            | restarted | SystemReset | restarted
        restart                 Cont unknown      | restarted | SystemReset | restarted
        restart                 Cont done         | restarted
        coredump-restart        Dump ?            | AwaitQuiet
        coredump-restart        Dump unknown      | AwaitQuiet
        coredump-restart        Dump failed       | SystemReset
        coredump-preserve       Dump failed       | conclude
        required-restart        Dump failed       | give up Dump
        required-restart        Dump unknown      | AwaitQuiet
        collect-restart         Collect ?         | Collect
        collect-restart         Collect unknown   | Collect
        collect-restart         Collect done      | AwaitQuiet
        collect-restart         Collect failed    | AwaitQuiet
        coredump-ignore         Dump failed       | Cont
        coredump-restart        Dump done         | SystemReset
        coredump-preserve       Dump done         | conclude
        destroy                 -                 | EnsureStopped
        destroy                 Quit ?            | Quit
        destroy                 Kill unknown      | Quit
        relaunch                Terminate ?       | Quit
        ignore                  -                 | EnsureStopped
        ignore                  Cont ?            | Cont
        ignore                  Cont unknown      | Cont
        ignore                  Cont done         | ran-on
        coredump-ignore         Dump done         | Cont
        release                 Cont done         | released
        held                    -                 | redecide
        ignore-running          -                 | redecide
        coredump-ignore-paused  Dump ?            | redecide
        grace                   -                 | EnsureStopped
        grace                   Cont ?            | Cont
        grace                   Cont unknown      | Cont
        grace                   Cont done         | redecide
        grace                   AwaitGuestReset ? | redecide
        grace-running           -                 | redecide
        grace-running           AwaitGuestReset ? | redecide
        gone                    -                 | redecide
        relaunch-gone           -                 | redecide
        relaunch-gone           AwaitReturn ?     | relaunched
    """),
    Rows(("running", "suspended", "colo"), """
        restart                 -                 | foreign-resume
        restart                 AwaitQuiet done   | foreign-resume
        restart                 SystemReset ?     | restarted
        restart                 SystemReset done  | restarted
        restart                 Cont ?            | restarted
        coredump-restart        Dump ?            | foreign-resume
        destroy                 -                 | foreign-resume
        destroy                 Quit ?            | foreign-resume
        relaunch                Kill ?            | foreign-resume
        coredump-preserve       Dump done         | foreign-resume
        ignore                  -                 | foreign-resume
        ignore                  Cont ?            | conclude
        release                 Cont ?            | released
        ignore-running          -                 | conclude
        coredump-ignore-running EnsureStopped ?   | foreign-resume
        grace                   -                 | foreign-resume
        grace                   AwaitQuiet done   | foreign-resume
        grace                   Cont ?            | AwaitGuestReset
        grace                   Cont done         | AwaitGuestReset
        grace                   AwaitGuestReset ? | stay
        grace-running           -                 | AwaitGuestReset
        grace-running           AwaitGuestReset ? | stay
        held                    -                 | foreign-resume
        gone                    -                 | foreign-resume
        relaunch-gone           -                 | foreign-resume
    """),
    Rows(("prelaunch",), """
        restart                 -                 | foreign-reset
        restart                 AwaitQuiet done   | foreign-reset
        restart                 SystemReset ?     | Cont
        restart                 SystemReset done  | Cont
        restart                 Cont ?            | Cont
        restart                 Cont done         | restarted
        destroy                 -                 | foreign-reset
        destroy                 Quit ?            | foreign-reset
        coredump-preserve       Dump ?            | foreign-reset
        ignore                  Cont ?            | foreign-reset
        grace                   AwaitGuestReset ? | foreign-reset
        relaunch-gone           -                 | foreign-reset
    """),
    Rows(("paused",), """
        restart                 -                 | foreign-reset  | foreign-resume | foreign-resume
        restart                 AwaitQuiet done   | foreign-reset  | AwaitQuiet     | AwaitQuiet
        restart                 SystemReset ?     | SystemReset
        restart                 SystemReset done  | Cont           | Cont           | restarted
        restart                 Cont ?            | Cont           | Cont           | restarted
        restart                 Cont done         | restarted
        destroy                 -                 | foreign-reset  | foreign-resume | foreign-resume
        destroy                 Quit ?            | foreign-reset  | Quit           | Quit
        ignore                  Cont ?            | foreign-reset  | ran-on         | ran-on
        grace                   Cont ?          | foreign-reset | AwaitGuestReset | AwaitGuestReset
        grace                   AwaitGuestReset ? | stay
        coredump-ignore-running Dump done         | foreign-reset  | Cont           | Cont
        coredump-ignore-running Cont ?            | foreign-reset  | Cont           | Cont
        coredump-ignore-running Cont done         | ran-on
        gone                    -                 | foreign-reset  | foreign-resume | foreign-resume
    """),
    Rows(("postmigrate",), """
        restart                 -                 | migrated
        destroy                 Quit ?            | migrated
        coredump-preserve       Dump ?            | migrated
        grace                   AwaitGuestReset ? | migrated
    """),
    Rows(("shutdown",), """
        grace                   AwaitGuestReset ? | guest-shutdown
    """),
    Rows(("debug", "internal-error", "io-error", "watchdog", "unknown"), """
        grace                   AwaitGuestReset ? | stay
    """),
    Rows(("debug", "inmigrate", "internal-error", "io-error", "finish-migrate", "restore-vm",
          "save-vm", "shutdown", "watchdog", "preconfig", "unknown"), """
        restart                 -                 | stay
        restart                 Cont ?            | stay
        destroy                 Quit ?            | stay
        coredump-preserve       Dump ?            | stay
        ignore                  Cont ?            | stay
    """),
]  # fmt: skip

ERAS: list[tuple[Version, ...]] = [
    ((1, 5, 0), (1, 6, 2)),
    ((1, 7, 0), (2, 5, 1)),
    ((2, 6, 0), (2, 8, 0), (7, 2, 0), (11, 1, 0)),
]


def rows() -> list[tuple[str, str, str, Version, str]]:
    found = []
    for block in TABLE:
        for line in filter(None, map(str.strip, block.text.splitlines())):
            given, *expected = (part.strip() for part in line.split("|"))
            name, progress = given.split(maxsplit=1)
            for era, versions in enumerate(ERAS):
                outcome = expected[era if len(expected) > 1 else 0]
                found += [
                    (name, progress, run_state, version, outcome)
                    for version in versions
                    for run_state in block.run_states
                ]
    return found


@pytest.mark.parametrize(("name", "progress", "run_state", "version", "expected"), rows())
def test_same_qemu(
    name: str, progress: str, run_state: str, version: Version, expected: str
) -> None:
    found = Found(RunState(run_state), same_process=True, version=version)
    assert told(recover(incident(PLANS[name], progress), found), PLANS[name]) == expected


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        ("SystemReset ?", "SystemReset"),
        ("SystemReset done", "SystemReset"),
        ("Cont ?", "SystemReset"),
        ("Cont done", "restarted"),
    ],
)
def test_libvirt_may_call_a_guest_crashed_that_was_reset(progress: str, expected: str) -> None:
    """libvirtd has ended before it could take the reset in; a reset is right either way."""
    plan, version = PLANS["restart"], MODERN.version
    found = Found(RunState.GUEST_PANICKED, same_process=True, version=version, by_libvirt=True)
    assert told(recover(incident(plan, progress), found), plan) == expected


LOSES = {"restart": PLANS["collect-restart"], "destroy": plan("destroy", policy=COLLECTS)}


@pytest.mark.parametrize("action", LOSES)
@pytest.mark.parametrize(
    ("run_state", "version", "progress", "expected"),
    [
        (RunState.GUEST_PANICKED, MODERN.version, "Collect done", "Collect"),
        (RunState.GUEST_PANICKED, MODERN.version, "AwaitQuiet ?", "Collect"),
        (RunState.GUEST_PANICKED, MODERN.version, "{command} ?", "Collect"),
        (RunState.GUEST_PANICKED, MODERN.version, "{command} unknown", "Collect"),
        # Nothing proves that these are still the panicked guest.
        (RunState.GUEST_PANICKED, (2, 0, 0), "AwaitQuiet ?", "AwaitQuiet"),
        (RunState.PAUSED, MODERN.version, "AwaitQuiet ?", "AwaitQuiet"),
    ],
)
def test_lost_evidence_is_taken_again_if_the_guest_still_shows_it(
    action: str, run_state: RunState, version: Version, progress: str, expected: str
) -> None:
    plan = LOSES[action]
    command = {"restart": "SystemReset", "destroy": "Quit"}[action]
    stands = incident(plan, progress.format(command=command))
    found = Found(run_state, same_process=True, version=version, evidence_lost=True)
    assert told(recover(stands, found), plan) == expected
    assert told(recover(stands, replace(found, evidence_lost=False)), plan) != "Collect"
    again = apply(apply(stands, StepBegun(NOW, 1)), StepEnded(NOW, 1, Outcome.DONE))
    assert told(recover(again, found), plan) != "Collect", "it is taken twice at most"


@pytest.mark.parametrize("run_state", [RunState.PAUSED, RunState.GUEST_PANICKED])
def test_quit_that_may_not_have_been_given_is_not_given_unasked(run_state: RunState) -> None:
    """QEMU may be busy: panicd was killed while it asked, and before it gave the command."""
    destroy = PLANS["destroy"]
    begun = carried_out(apply(NEW, Decided(NOW, destroy)), [Outcome.DONE, None, None])
    found = Found(run_state, same_process=True, version=MODERN.version)
    assert told(recover(begun, found), destroy) == "AwaitQuiet"


def test_lost_evidence_of_a_guest_that_was_reset_is_not_taken() -> None:
    plan = PLANS["collect-restart"]
    found = Found(RunState.GUEST_PANICKED, True, MODERN.version, evidence_lost=True)
    assert told(recover(incident(plan, "SystemReset done"), found), plan) == "restarted"


@pytest.mark.parametrize("last", [None, Outcome.UNKNOWN])
@pytest.mark.parametrize(
    ("name", "step", "tries", "gone_on_with"),
    [
        ("coredump-restart", "Dump", 2, "AwaitQuiet"),
        ("required-restart", "Dump", 2, "AwaitQuiet"),
        ("collect-restart", "Collect", 2, "Collect"),
        ("destroy", "Quit", 3, "Quit"),
        ("restart", "SystemReset", 3, "SystemReset"),
    ],
)
def test_what_loses_its_answer_each_time_is_given_up(
    name: str, step: str, tries: int, gone_on_with: str, last: Outcome | None
) -> None:
    plan, version = PLANS[name], MODERN.version
    index = [type(step).__name__ for step in plan.steps].index(step)
    stands = incident(plan, f"{step} ?")
    founds = [
        Found(run_state, same_process=True, version=version)
        for run_state in (RunState.GUEST_PANICKED, RunState.PAUSED)
    ]
    for tried in range(1, tries + 1):
        if last is not None:
            stands = apply(stands, StepEnded(NOW, index, last))
        follows = gone_on_with if tried < tries else f"give up {step}"
        assert {told(recover(stands, found), plan) for found in founds} == {follows}
        for again in range(min(index, 1), index + 1):  # what comes before it is begun again too
            stands = apply(stands, StepBegun(NOW, again))
            if again < index:
                stands = apply(stands, StepEnded(NOW, again, Outcome.DONE))


def test_another_plan_begins_anew_to_count() -> None:
    stands = incident(PLANS["coredump-restart"], "Dump ?")
    stands = apply(stands, StepBegun(NOW, max(stands.steps)))
    assert set(stands.begun.values()) == {1, 2}
    assert apply(stands, Decided(NOW, PLANS["destroy"])).begun == {}


def test_no_run_state_is_left_out_above() -> None:
    assert {state for block in TABLE for state in block.run_states} == set(RunState)


@pytest.mark.parametrize(
    ("state", "run_state", "expected"),
    [
        ("preserved", "guest-panicked", "stay"),
        ("preserved", "paused", "foreign-reset | stay | stay"),
        ("preserved", "io-error", "stay"),
        ("preserved", "prelaunch", "foreign-reset"),
        ("preserved", "running", "foreign-resume"),
        ("preserved", "suspended", "foreign-resume"),
        ("failed", "guest-panicked", "stay"),
        ("failed", "prelaunch", "foreign-reset"),
        ("failed", "running", "foreign-resume"),
        ("running-on", "guest-panicked", "ran-on"),
        ("running-on", "paused", "foreign-reset | stay | stay"),
        ("running-on", "running", "stay"),
        ("running-on", "prelaunch", "foreign-reset"),
        ("detected", "guest-panicked", "redecide"),
        ("detected", "paused", "foreign-reset | stay | stay"),
        ("detected", "running", "foreign-resume"),
    ],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_same_qemu_where_no_plan_is_under_way(
    state: str, run_state: str, expected: str, place: int
) -> None:
    version = ((1, 6, 2), (2, 5, 1), (7, 2, 0))[place]
    *_, each = expected.split(" | ")[: place + 1]
    stands = NEW
    if state != "detected":
        settled = next(settled for settled in SETTLED if settled.state == state)
        stands = apply(apply(NEW, Decided(NOW, PLANS["ignore"])), settled)
    found = Found(RunState(run_state), same_process=True, version=version)
    assert told(recover(stands, found), PLANS["ignore"]) == each


@pytest.mark.parametrize(
    ("run_state", "expected"),
    [("guest-panicked", "ran-on"), ("running", "stay"), ("prelaunch", "foreign-reset")],
)
def test_guest_that_nobody_knows_to_have_reset_itself(run_state: str, expected: str) -> None:
    watched = incident(PLANS["grace"], "AwaitGuestReset failed")
    stands = apply(watched, Settled(NOW, State.FAILED))
    found = Found(RunState(run_state), same_process=True, version=MODERN.version)
    assert told(recover(stands, found), PLANS["grace"]) == expected


@pytest.mark.parametrize(
    ("name", "progress", "gone", "gone_by_panic", "another"),
    [
        ("restart", "-", "qemu-gone", "redecide", "qemu-gone"),
        ("restart", "AwaitQuiet ?", "qemu-gone", "redecide", "qemu-gone"),
        ("restart", "SystemReset ?", "redecide", "redecide", "qemu-gone"),
        ("restart", "Cont ?", "qemu-gone", "redecide", "qemu-gone"),
        ("coredump-restart", "Dump ?", "qemu-gone", "redecide", "qemu-gone"),
        ("coredump-preserve", "Dump ?", "qemu-gone", "redecide", "qemu-gone"),
        ("destroy", "Quit ?", "destroyed", "destroyed", "destroyed"),
        ("destroy", "Kill unknown", "destroyed", "destroyed", "destroyed"),
        ("relaunch", "-", "qemu-gone", "redecide", "qemu-gone"),
        ("relaunch", "AwaitQuiet ?", "RunRelaunch", "RunRelaunch", "qemu-gone"),
        ("relaunch", "Quit ?", "RunRelaunch", "RunRelaunch", "destroyed"),
        ("relaunch", "Kill done", "RunRelaunch", "RunRelaunch", "destroyed"),
        ("relaunch", "RunRelaunch ?", "AwaitReturn", "AwaitReturn", "relaunched"),
        ("relaunch", "RunRelaunch skipped", "RunRelaunch", "RunRelaunch", "destroyed"),
        ("relaunch", "AwaitReturn ?", "stay", "stay", "relaunched"),
        ("grace", "Cont ?", "qemu-gone", "qemu-gone", "qemu-gone"),
        ("grace", "AwaitGuestReset ?", "qemu-gone", "qemu-gone", "qemu-gone"),
        ("grace-running", "AwaitGuestReset ?", "qemu-gone", "redecide", "qemu-gone"),
        ("relaunch-gone", "-", "qemu-gone", "redecide", "qemu-gone"),
        ("relaunch-gone", "RunRelaunch ?", "AwaitReturn", "AwaitReturn", "relaunched"),
        ("relaunch-gone", "RunRelaunch skipped", "RunRelaunch", "RunRelaunch", "qemu-gone"),
        ("relaunch-gone", "AwaitReturn ?", "stay", "stay", "relaunched"),
        ("gone", "-", "qemu-gone", "redecide", "qemu-gone"),
    ],
)
def test_qemu_gone(name: str, progress: str, gone: str, gone_by_panic: str, another: str) -> None:
    stands, plan = incident(PLANS[name], progress), PLANS[name]
    version = MODERN.version
    assert told(recover(stands, Found(None, True, version)), plan) == gone
    assert told(recover(stands, Found(None, True, version, by_panic=True)), plan) == gone_by_panic
    for run_state in (RunState.GUEST_PANICKED, RunState.RUNNING, RunState.PRELAUNCH):
        assert told(recover(stands, Found(run_state, False, version)), plan) == another


@pytest.mark.parametrize("by_panic", [False, True])
@pytest.mark.parametrize(
    ("name", "progress", "gone", "another"),
    [
        ("restart", "AwaitQuiet done", "qemu-gone", "qemu-gone"),
        ("restart", "SystemReset failed", "qemu-gone", "qemu-gone"),
        ("destroy", "Kill failed", "qemu-gone", "qemu-gone"),
        ("relaunch", "RunRelaunch failed", "stay", "relaunched"),
        ("relaunch", "AwaitReturn failed", "stay", "relaunched"),
    ],
)
def test_qemu_gone_once_nothing_more_was_to_be_done(
    name: str, progress: str, gone: str, another: str, by_panic: bool
) -> None:
    plan, version = PLANS[name], MODERN.version
    for settled in (Settled(NOW, State.PRESERVED), Settled(NOW, State.FAILED)):
        stands = apply(incident(plan, progress), settled)
        assert told(recover(stands, Found(None, True, version, by_panic)), plan) == gone
        assert told(recover(stands, Found(RunState.RUNNING, False, version)), plan) == another


@given(policies, capabilities, situations)
def test_no_shape_of_a_plan_is_left_out_above(
    policy: Policy, capability: Capability, situation: Situation
) -> None:
    decision = decide(policy, capability, situation, now=NOW)
    made = make_plan(decision, policy, capability, situation)
    assert (made.decision.action, kinds(made)) in SHAPES


def kinds(plan: Plan) -> tuple[type, ...]:
    return tuple(type(step) for step in plan.steps)


SHAPES = {(plan.decision.action, kinds(plan)) for plan in PLANS.values()}


def incidents(plan: Plan) -> Iterator[Incident]:
    """Yield every incident that carrying a plan out can leave behind, however it was cut off."""
    decided = apply(NEW, Decided(NOW, plan))
    stands = [
        carried_out(decided, [*[Outcome.DONE] * last, outcome])
        for last in range(len(plan.steps))
        for outcome in (None, *Outcome)
    ]
    for incident in (decided, *stands):
        yield incident
        for settled in SETTLED:
            if settled.state is not State.RUNNING_ON or incident.action is Action.IGNORE:
                yield apply(incident, settled)


FOUNDS = [
    Found(run_state, same_process, version, by_panic)
    for run_state in (None, *RunState)
    for same_process in (True, False)
    for version in ((1, 6, 2), (2, 5, 1), (7, 2, 0))
    for by_panic in (False, True)
    if run_state is None or not by_panic
]


@pytest.mark.parametrize("name", PLANS)
def test_whatever_is_found_nothing_unsafe_follows(name: str) -> None:
    for stands in incidents(PLANS[name]):
        for found in FOUNDS:
            check(recover(stands, found), stands, found)


def check(recovery: Recovery, stands: Incident, found: Found) -> None:
    """Assert that what follows is safe, and possible."""
    assert stands.plan is not None
    match recovery:
        case GoOn(index=index):
            assert stands.state in {State.DECIDED, State.ACTING}
            assert 0 <= index <= len(stands.plan.steps)
            if index < len(stands.plan.steps):
                check_next_step(stands.plan.steps[index], stands, found)
        case GiveUp(index=index):
            assert stands.state in {State.DECIDED, State.ACTING}
            assert found.same_process
            check_next_step(stands.plan.steps[index], stands, found)
        case Redecide():
            panicked = found.same_process and found.run_state is RunState.GUEST_PANICKED
            assert panicked or found.run_state is None
        case End() | Stay():
            pass


def check_next_step(step: AnyStep, stands: Incident, found: Found) -> None:
    """Assert that a plan is gone on with on no guest that may be a healthy one."""
    if isinstance(step, RunRelaunch | AwaitReturn):
        assert found.run_state is None
        return
    assert found.same_process
    if isinstance(step, AwaitGuestReset):
        return  # nothing is done to it
    if isinstance(step, Cont):
        check_cont(stands, found)
        return
    assert found.run_state in {RunState.GUEST_PANICKED, RunState.PAUSED}


def check_cont(stands: Incident, found: Found) -> None:
    """Assert that a guest is let run only once it was reset, or where its panic is ignored."""
    assert stands.plan is not None
    steps = stands.plan.steps
    reset = next((i for i, step in enumerate(steps) if isinstance(step, SystemReset)), None)
    if reset is None:
        assert stands.action in {Action.IGNORE, Action.GRACE, Action.RELEASE}
        assert found.run_state in {RunState.GUEST_PANICKED, RunState.PAUSED}
    elif found.run_state is not RunState.PRELAUNCH:
        assert stands.steps[reset].outcome is Outcome.DONE
        assert found.run_state is RunState.PAUSED
        assert found.version < (2, 6, 0)
