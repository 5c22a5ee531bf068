from dataclasses import dataclass, replace

import pytest

from panicd.rules.capability import Capability
from panicd.rules.on_crash import Action, OnCrash
from panicd.rules.panic_device import PanicDevice
from panicd.rules.policy import (
    EXPLANATIONS,
    Decision,
    ImpossibleError,
    Reason,
    Situation,
    applicable,
    decide,
    decide_for_operator,
    end_flood,
    fall_back,
    ignore_again,
    while_unwritten,
)
from panicd.rules.qapi import PanicInformation, RunState
from panicd.rules.settings import Budget, PanicNotifier, Policy
from tests.rules.strategies import COREDUMP, IRREVERSIBLE, MODERN, NOW, PANICKED, RELAUNCH

PLAIN = Policy(COREDUMP)
OLD_REVERSIBLE = replace(IRREVERSIBLE, version=(2, 0, 0))
NO_RESET = replace(MODERN, reboot_is_shutdown=True)
ONE_RESTART = Budget(max=1, window=3600, min_uptime=60)
AN_HOUR_OLD = replace(PANICKED, restarts=(NOW - 3600,))
IN_THE_WINDOW = replace(PANICKED, restarts=(NOW - 3599,))
A_MOMENT_AGO = replace(PANICKED, restarts=(NOW - 59,))
GONE = Situation(None)
HYPER_V = PanicInformation("hyper-v")


@dataclass(frozen=True)
class Case:
    """A situation, and the decisions that are not simply what ``on_crash`` says.

    Each line reads: on_crash, what is done, why, and whether it takes a relaunch.
    """

    name: str
    policy: Policy = PLAIN
    capability: Capability = MODERN
    situation: Situation = PANICKED
    otherwise: str = ""


CASES = [
    Case("panicked"),
    Case("panicked before 1.7", capability=IRREVERSIBLE, otherwise="""
        ignore            preserve           irreversible
        coredump-ignore   coredump-preserve  irreversible
    """),
    Case("before 1.7, destroyed instead", replace(PLAIN, fallback=Action.DESTROY), IRREVERSIBLE,
        otherwise="""
        ignore            destroy            irreversible
        coredump-ignore   coredump-destroy   irreversible
    """),
    Case("before 1.7, restarted instead", replace(PLAIN, fallback=Action.RESTART), IRREVERSIBLE,
        otherwise="""
        ignore            restart            irreversible
        coredump-ignore   coredump-restart   irreversible
    """),
    Case("before 1.7, not restarted beyond the budget",
        replace(PLAIN, fallback=Action.RESTART, restart=ONE_RESTART), IRREVERSIBLE, IN_THE_WINDOW,
        otherwise="""
        ignore            preserve           irreversible
        coredump-ignore   coredump-preserve  irreversible
        restart           preserve           budget-spent
        coredump-restart  coredump-preserve  budget-spent
    """),
    Case("no reset", capability=NO_RESET, otherwise="""
        restart           preserve           reset-impossible
        coredump-restart  coredump-preserve  reset-impossible
    """),
    Case("no reset, destroyed instead", replace(PLAIN, fallback=Action.DESTROY), NO_RESET,
        otherwise="""
        restart           destroy            reset-impossible
        coredump-restart  coredump-destroy   reset-impossible
    """),
    Case("no reset, relaunched", replace(PLAIN, relaunch=RELAUNCH), NO_RESET, otherwise="""
        restart           restart            on-crash          relaunch
        coredump-restart  coredump-restart   on-crash          relaunch
    """),
    Case("no reset, relaunched, but not beyond the budget",
        replace(PLAIN, relaunch=RELAUNCH, restart=ONE_RESTART), NO_RESET, IN_THE_WINDOW,
        otherwise="""
        restart           preserve           budget-spent
        coredump-restart  coredump-preserve  budget-spent
    """),
    Case("a reset is possible, so no relaunch", replace(PLAIN, relaunch=RELAUNCH)),
    Case("runs on", situation=Situation(RunState.RUNNING)),
    Case("runs on before 1.7", capability=IRREVERSIBLE, situation=Situation(RunState.RUNNING)),
    Case("paused by others", situation=Situation(RunState.PAUSED), otherwise="""
        restart           preserve           stopped-by-others
        coredump-restart  coredump-preserve  stopped-by-others
    """),
    Case("paused by others, destroyed instead", replace(PLAIN, fallback=Action.DESTROY),
        situation=Situation(RunState.PAUSED), otherwise="""
        restart           destroy            stopped-by-others
        coredump-restart  coredump-destroy   stopped-by-others
    """),
    Case("arrives by migration", situation=Situation(RunState.INMIGRATE), otherwise="""
        restart           preserve           migration
        coredump-restart  coredump-preserve  migration
        ignore            preserve           migration
        coredump-ignore   coredump-preserve  migration
    """),
    Case("QEMU is gone", situation=GONE, otherwise="""
        destroy           none               qemu-exited
        restart           none               qemu-exited
        preserve          none               qemu-exited
        ignore            none               qemu-exited
        coredump-destroy  none               qemu-exited
        coredump-restart  none               qemu-exited
        coredump-preserve none               qemu-exited
        coredump-ignore   none               qemu-exited
    """),
    Case("QEMU is gone, relaunched", replace(PLAIN, relaunch=RELAUNCH), situation=GONE,
        otherwise="""
        destroy           none               qemu-exited
        restart           restart            qemu-exited       relaunch
        preserve          none               qemu-exited
        ignore            none               qemu-exited
        coredump-destroy  none               qemu-exited
        coredump-restart  restart            qemu-exited       relaunch
        coredump-preserve none               qemu-exited
        coredump-ignore   none               qemu-exited
    """),
    Case("QEMU is gone, the budget too",
        replace(PLAIN, relaunch=RELAUNCH, restart=Budget(max=0)), situation=GONE, otherwise="""
        destroy           none               qemu-exited
        restart           none               qemu-exited
        preserve          none               qemu-exited
        ignore            none               qemu-exited
        coredump-destroy  none               qemu-exited
        coredump-restart  none               qemu-exited
        coredump-preserve none               qemu-exited
        coredump-ignore   none               qemu-exited
    """),
    Case("a restart left", replace(PLAIN, restart=ONE_RESTART), situation=AN_HOUR_OLD),
    Case("no restart left", replace(PLAIN, restart=ONE_RESTART), situation=IN_THE_WINDOW,
        otherwise="""
        restart           preserve           budget-spent
        coredump-restart  coredump-preserve  budget-spent
    """),
    Case("a crash loop", replace(PLAIN, restart=replace(ONE_RESTART, then=Action.DESTROY)),
        situation=A_MOMENT_AGO, otherwise="""
        restart           destroy            crash-loop
        coredump-restart  coredump-destroy   crash-loop
    """),
    Case("held", situation=replace(PANICKED, held=True), otherwise="""
        destroy           preserve           held
        restart           preserve           held
        preserve          preserve           held
        ignore            preserve           held
        coredump-destroy  preserve           held
        coredump-restart  preserve           held
        coredump-preserve preserve           held
        coredump-ignore   preserve           held
    """),
    Case("a storm", situation=replace(PANICKED, storm=True), otherwise="""
        destroy           preserve           storm
        restart           preserve           storm
        coredump-destroy  preserve           storm
        coredump-restart  preserve           storm
    """),
    Case("a storm, and a fallback that would destroy", replace(PLAIN, fallback=Action.DESTROY),
        IRREVERSIBLE, replace(PANICKED, storm=True), otherwise="""
        destroy           preserve           storm
        restart           preserve           storm
        coredump-destroy  preserve           storm
        coredump-restart  preserve           storm
        ignore            preserve           irreversible
        coredump-ignore   coredump-preserve  irreversible
    """),
]  # fmt: skip


@pytest.mark.parametrize("on_crash", OnCrash)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_decision(case: Case, on_crash: OnCrash) -> None:
    rows = {row.split()[0]: row.split()[1:] for row in case.otherwise.strip().splitlines() if row}
    effective, reason, *relaunch = rows.get(on_crash, [on_crash, "on-crash"])
    policy = replace(case.policy, on_crash=on_crash)
    decision = decide(policy, case.capability, case.situation, now=NOW)
    assert decision == Decision(
        wanted=on_crash,
        action=Action(effective.removeprefix("coredump-")),
        coredump=effective.startswith("coredump-"),
        reason=Reason(reason),
        relaunch=relaunch == ["relaunch"],
    )
    assert decision.effective == effective


# What may be done to a guest in each state, where on_crash is restart, and where it is ignore.
BY_RUN_STATE = [
    ("guest-panicked", "restart", "ignore"),
    ("running", "restart", "ignore"),
    ("suspended", "restart", "ignore"),
    ("internal-error", "restart", "ignore"),
    ("shutdown", "restart", "ignore"),
    ("preconfig", "restart", "ignore"),
    ("unknown", "restart", "ignore"),
    ("inmigrate", "preserve", "preserve"),
    ("postmigrate", "preserve", "preserve"),
    ("finish-migrate", "preserve", "preserve"),
    ("colo", "preserve", "preserve"),
    ("paused", "preserve", "ignore"),
    ("prelaunch", "preserve", "ignore"),
    ("io-error", "preserve", "ignore"),
    ("watchdog", "preserve", "ignore"),
    ("save-vm", "preserve", "ignore"),
    ("restore-vm", "preserve", "ignore"),
    ("debug", "preserve", "ignore"),
]


@pytest.mark.parametrize(("run_state", "restart", "ignore"), BY_RUN_STATE)
def test_what_would_let_a_guest_run_looks_at_who_stopped_it(
    run_state: str, restart: str, ignore: str
) -> None:
    situation = Situation(RunState(run_state))
    for on_crash, expected in ((OnCrash.RESTART, restart), (OnCrash.IGNORE, ignore)):
        policy = replace(PLAIN, on_crash=on_crash)
        assert decide(policy, MODERN, situation, now=NOW).action == expected


def test_no_run_state_is_left_out_above() -> None:
    assert {row[0] for row in BY_RUN_STATE} == set(RunState)


@pytest.mark.parametrize(
    ("notifier", "device", "information", "expected"),
    [
        (PanicNotifier.REQUIRED, PanicDevice.REQUESTED, None, "destroy on-crash"),
        (PanicNotifier.REQUIRED, PanicDevice.BUILTIN, None, "coredump-preserve unrequested-device"),
        (
            *(PanicNotifier.REQUIRED, PanicDevice.NEUTRALISED, None),
            "coredump-preserve unrequested-device",
        ),
        (PanicNotifier.REQUIRED, PanicDevice.BUILTIN, HYPER_V, "destroy on-crash"),
        (PanicNotifier.REQUIRED, PanicDevice.NONE, None, "destroy on-crash"),
        (PanicNotifier.ANY, PanicDevice.BUILTIN, None, "destroy on-crash"),
    ],
)
def test_a_builtin_device_does_not_bring_on_crash_about(
    notifier: PanicNotifier,
    device: PanicDevice,
    information: PanicInformation | None,
    expected: str,
) -> None:
    policy = replace(
        PLAIN,
        on_crash=OnCrash.DESTROY,
        unrequested=OnCrash.COREDUMP_PRESERVE,
        panic_notifier=notifier,
    )
    capability = replace(IRREVERSIBLE, panic_device=device)
    assert " ".join(applicable(policy, capability, information)) == expected
    situation = replace(PANICKED, information=information)
    decision = decide(policy, capability, situation, now=NOW)
    assert f"{decision.effective} {decision.reason}" == expected
    unrequested = decision.reason is Reason.UNREQUESTED_DEVICE
    assert decision.on_crash is OnCrash.DESTROY
    assert decision.unrequested is (OnCrash.COREDUMP_PRESERVE if unrequested else None)


def test_what_follows_still_tells_on_crash_from_unrequested() -> None:
    policy = replace(PLAIN, on_crash=OnCrash.RESTART, unrequested=OnCrash.IGNORE)
    builtin = replace(IRREVERSIBLE, panic_device=PanicDevice.BUILTIN)
    given_up = decide(policy, builtin, PANICKED, now=NOW)
    assert (given_up.action, given_up.reason) == (Action.PRESERVE, Reason.IRREVERSIBLE)
    failed = fall_back(policy, builtin, PANICKED, given_up, Reason.ACTION_FAILED, now=NOW)
    for found in (given_up, failed, end_flood(given_up)):
        assert (found.on_crash, found.unrequested) == (OnCrash.RESTART, OnCrash.IGNORE)


@pytest.mark.parametrize(
    ("situation", "expected"),
    [
        (PANICKED, "ignore on-crash"),
        (replace(PANICKED, held=True), "preserve held"),
        (replace(PANICKED, run_state=RunState.FINISH_MIGRATE), "preserve migration"),
        (replace(PANICKED, storm=True), "ignore on-crash"),
    ],
)
def test_a_guest_that_panics_again_is_ignored_again(situation: Situation, expected: str) -> None:
    policy = replace(PLAIN, on_crash=OnCrash.COREDUMP_IGNORE, fallback=Action.DESTROY)
    ignored = decide(policy, OLD_REVERSIBLE, PANICKED, now=NOW)
    assert ignored.coredump
    again = ignore_again(policy, OLD_REVERSIBLE, situation, ignored, now=NOW)
    assert f"{again.effective} {again.reason}" == expected


@pytest.mark.parametrize(
    ("on_crash", "expected"),
    [(OnCrash.IGNORE, "ignore on-crash"), (OnCrash.COREDUMP_IGNORE, "preserve journal")],
)
def test_a_guest_that_runs_is_not_stopped_for_a_dump_without_a_record(
    on_crash: OnCrash, expected: str
) -> None:
    running = replace(PANICKED, run_state=RunState.RUNNING)
    decided = decide(replace(PLAIN, on_crash=on_crash), MODERN, running, now=NOW)
    assert decided.action is Action.IGNORE
    foreseen = while_unwritten(decided, running)
    assert f"{foreseen.effective} {foreseen.reason}" == expected


def decision(action: str, reason: Reason = Reason.ON_CRASH, *, relaunch: bool = False) -> Decision:
    wanted = OnCrash(action)
    return Decision(wanted, wanted.action, wanted.coredump, reason, relaunch)


@pytest.mark.parametrize(
    ("failed", "why", "fallback", "expected"),
    [
        (decision("destroy"), Reason.ACTION_FAILED, "preserve", "preserve"),
        (decision("destroy"), Reason.ACTION_FAILED, "restart", "restart"),
        (decision("destroy"), Reason.ACTION_FAILED, "destroy", "preserve"),
        (decision("restart"), Reason.ACTION_FAILED, "destroy", "destroy"),
        (decision("restart"), Reason.ACTION_FAILED, "restart", "preserve"),
        (decision("restart", relaunch=True), Reason.ACTION_FAILED, "destroy", "destroy"),
        (decision("preserve"), Reason.ACTION_FAILED, "destroy", "destroy"),
        (decision("coredump-restart"), Reason.ACTION_FAILED, "destroy", "coredump-destroy"),
        (decision("coredump-restart"), Reason.DUMP_FAILED, "destroy", "coredump-preserve"),
        (decision("destroy", Reason.IRREVERSIBLE), Reason.ACTION_FAILED, "destroy", "preserve"),
        (decision("restart", Reason.IRREVERSIBLE), Reason.ACTION_FAILED, "destroy", "preserve"),
        (decision("restart", Reason.QEMU_EXITED), Reason.ACTION_FAILED, "destroy", "preserve"),
        (decision("destroy", Reason.BUDGET_SPENT), Reason.ACTION_FAILED, "restart", "preserve"),
        (decision("destroy", Reason.OPERATOR), Reason.ACTION_FAILED, "restart", "preserve"),
        (decision("restart", Reason.OPERATOR), Reason.ACTION_FAILED, "destroy", "preserve"),
    ],
)
def test_fallback(failed: Decision, why: Reason, fallback: str, expected: str) -> None:
    policy = replace(PLAIN, fallback=Action(fallback))
    follows = fall_back(policy, MODERN, PANICKED, failed, why, now=NOW)
    assert (follows.effective, follows.reason, follows.wanted) == (expected, why, failed.wanted)
    assert follows.is_fallback
    assert not follows.relaunch


@pytest.mark.parametrize(
    ("capability", "situation"),
    [
        (NO_RESET, PANICKED),
        (MODERN, GONE),
        (MODERN, Situation(RunState.POSTMIGRATE)),
        (MODERN, Situation(RunState.PAUSED)),
        (MODERN, IN_THE_WINDOW),
        (MODERN, replace(PANICKED, held=True)),
        (MODERN, replace(PANICKED, storm=True)),
    ],
)
def test_a_restart_that_may_not_be_is_no_fallback_either(
    capability: Capability, situation: Situation
) -> None:
    policy = replace(PLAIN, fallback=Action.RESTART, restart=ONE_RESTART)
    failed, why = decision("destroy"), Reason.ACTION_FAILED
    assert fall_back(policy, MODERN, PANICKED, failed, why, now=NOW).action is Action.RESTART
    follows = fall_back(policy, capability, situation, failed, why, now=NOW)
    assert follows.action is Action.PRESERVE


@pytest.mark.parametrize(
    ("asked", "capability", "run_state", "expected"),
    [
        (None, MODERN, "guest-panicked", "release"),
        (None, MODERN, "paused", "release"),
        (None, IRREVERSIBLE, "paused", "release"),
        ("ignore", MODERN, "guest-panicked", "release"),
        ("coredump-ignore", MODERN, "guest-panicked", "coredump-release"),
        ("destroy", MODERN, "guest-panicked", "destroy"),
        ("coredump-restart", MODERN, "guest-panicked", "coredump-restart"),
        ("preserve", IRREVERSIBLE, "guest-panicked", "preserve"),
    ],
)
def test_an_operators_wish(
    asked: str | None, capability: Capability, run_state: str, expected: str
) -> None:
    on_crash = OnCrash(asked) if asked else None
    situation = Situation(RunState(run_state), held=True, storm=True, restarts=(NOW,) * 9)
    decision = decide_for_operator(PLAIN, capability, situation, on_crash)
    assert (decision.effective, decision.reason) == (expected, Reason.OPERATOR)
    assert not decision.is_fallback


def test_an_operator_may_have_a_guest_relaunched() -> None:
    policy = replace(PLAIN, relaunch=RELAUNCH)
    decision = decide_for_operator(policy, NO_RESET, PANICKED, OnCrash.RESTART)
    assert (decision.action, decision.relaunch) == (Action.RESTART, True)


@pytest.mark.parametrize(
    ("asked", "capability", "situation", "why"),
    [
        (None, IRREVERSIBLE, PANICKED, "refuses to resume"),
        ("ignore", IRREVERSIBLE, PANICKED, "refuses to resume"),
        ("restart", NO_RESET, PANICKED, "no relaunch is configured"),
        ("destroy", MODERN, GONE, "gone"),
        (None, MODERN, Situation(RunState.POSTMIGRATE), "run it twice"),
    ],
)
def test_an_operators_wish_that_can_not_be_granted(
    asked: str | None, capability: Capability, situation: Situation, why: str
) -> None:
    on_crash = OnCrash(asked) if asked else None
    with pytest.raises(ImpossibleError, match=why):
        decide_for_operator(PLAIN, capability, situation, on_crash)


def test_every_reason_is_explained_once() -> None:
    assert set(EXPLANATIONS) == set(Reason)
    assert len(set(EXPLANATIONS.values())) == len(Reason)
