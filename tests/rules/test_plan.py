from dataclasses import replace

import pytest

from panicd.rules.capability import Capability
from panicd.rules.on_crash import Action, OnCrash
from panicd.rules.plan import Collect, Dump, Plan, RunRelaunch, make_plan
from panicd.rules.policy import Decision, Reason, Situation
from panicd.rules.qapi import RunState
from panicd.rules.settings import DumpFormat, Evidence, Policy, Timeouts
from tests.rules.strategies import COREDUMP, MODERN, PANICKED, RELAUNCH

POLICY = Policy(
    replace(COREDUMP, timeout=8),
    relaunch=replace(RELAUNCH, timeout=9),
    timeouts=Timeouts(stop=1, quiet=2, reset=3, resume=4, quit=5, terminate=6, kill=7),
)
GONE = Situation(None)
RUNNING = Situation(RunState.RUNNING)
PAUSED = Situation(RunState.PAUSED)


def decision(
    effective: str, reason: Reason = Reason.ON_CRASH, *, relaunch: bool = False
) -> Decision:
    coredump = effective.startswith("coredump-")
    action = Action(effective.removeprefix("coredump-"))
    return Decision(OnCrash.PRESERVE, action, coredump, reason, relaunch)


def steps(plan: Plan) -> list[str]:
    """Return each step as its name, its time limit and what follows its failure."""
    return [f"{type(s).__name__} {s.timeout} {s.on_failure}" for s in plan.steps]


def expected(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines() if line.strip()]


DESTROY = """
    EnsureStopped 1 continue
    AwaitQuiet 2 fall-back
    Quit 5 continue
    Terminate 6 continue
    Kill 7 fall-back
"""
COREDUMP_DESTROY = """
    EnsureStopped 1 continue
    AwaitQuiet 2 fall-back
    Dump 8 continue
    Quit 5 continue
    Terminate 6 continue
    Kill 7 fall-back
"""
RESTART = """
    EnsureStopped 1 fall-back
    AwaitQuiet 2 fall-back
    SystemReset 3 fall-back
    Cont 4 fall-back
"""
COREDUMP_RESTART = """
    EnsureStopped 1 fall-back
    AwaitQuiet 2 fall-back
    Dump 8 continue
    SystemReset 3 fall-back
    Cont 4 fall-back
"""
RELAUNCHED = """
    EnsureStopped 1 fall-back
    AwaitQuiet 2 fall-back
    Quit 5 continue
    Terminate 6 continue
    Kill 7 fall-back
    RunRelaunch 9 fall-back
    AwaitReturn 9 fall-back
"""
COREDUMP_RELAUNCHED = """
    EnsureStopped 1 fall-back
    AwaitQuiet 2 fall-back
    Dump 8 continue
    Quit 5 continue
    Terminate 6 continue
    Kill 7 fall-back
    RunRelaunch 9 fall-back
    AwaitReturn 9 fall-back
"""
STOP = """
    EnsureStopped 1 fall-back
"""
DUMP = """
    EnsureStopped 1 fall-back
    AwaitQuiet 2 fall-back
    Dump 8 continue
"""
CONT = """
    EnsureStopped 1 fall-back
    AwaitQuiet 2 fall-back
    Cont 4 fall-back
"""
DUMP_AND_CONT = """
    EnsureStopped 1 fall-back
    AwaitQuiet 2 fall-back
    Dump 8 continue
    Cont 4 fall-back
"""
ONLY_RELAUNCH = """
    RunRelaunch 9 fall-back
    AwaitReturn 9 fall-back
"""


@pytest.mark.parametrize(
    ("decided", "situation", "plan"),
    [
        (decision("destroy"), PANICKED, DESTROY),
        (decision("coredump-destroy"), PANICKED, COREDUMP_DESTROY),
        (decision("restart"), PANICKED, RESTART),
        (decision("coredump-restart"), PANICKED, COREDUMP_RESTART),
        (decision("restart", relaunch=True), PANICKED, RELAUNCHED),
        (decision("coredump-restart", relaunch=True), PANICKED, COREDUMP_RELAUNCHED),
        (decision("preserve"), PANICKED, STOP),
        (decision("coredump-preserve"), PANICKED, DUMP),
        (decision("ignore"), PANICKED, CONT),
        (decision("coredump-ignore"), PANICKED, DUMP_AND_CONT),
        (decision("release", Reason.OPERATOR), PANICKED, CONT),
        (decision("coredump-release", Reason.OPERATOR), PANICKED, DUMP_AND_CONT),
        (decision("release", Reason.OPERATOR), PAUSED, CONT),
        (decision("preserve", Reason.HELD), PANICKED, ""),
        (decision("preserve", Reason.STORM), PANICKED, STOP),
        # A guest that the panic did not stop.
        (decision("preserve"), RUNNING, STOP),
        (decision("restart"), RUNNING, RESTART),
        (decision("ignore"), RUNNING, ""),
        (decision("coredump-ignore"), RUNNING, DUMP_AND_CONT),
        # One that somebody else had stopped: it is not for panicd to let it run.
        (decision("ignore"), PAUSED, ""),
        (decision("coredump-ignore"), PAUSED, DUMP),
        (decision("coredump-preserve"), PAUSED, DUMP),
        # No QEMU left.
        (decision("none", Reason.QEMU_EXITED), GONE, ""),
        (decision("restart", Reason.QEMU_EXITED, relaunch=True), GONE, ONLY_RELAUNCH),
        (decision("destroy", Reason.ACTION_FAILED), GONE, ""),
        (decision("preserve", Reason.ACTION_FAILED), GONE, ""),
    ],
    ids=lambda value: value.effective if isinstance(value, Decision) else "",
)
def test_steps(decided: Decision, situation: Situation, plan: str) -> None:
    made = make_plan(decided, POLICY, MODERN, situation)
    assert steps(made) == expected(plan)
    assert made.decision == decided


@pytest.mark.parametrize(
    "effective", ["preserve", "destroy", "restart", "ignore", "coredump-restart", "release"]
)
def test_evidence_is_taken_of_a_stopped_guest_before_anything_is_changed(effective: str) -> None:
    keeping = replace(POLICY, evidence=Evidence(budget=0.5))
    made = steps(make_plan(decision(effective), keeping, MODERN, PANICKED))
    without = steps(make_plan(decision(effective), POLICY, MODERN, PANICKED))
    assert made == [without[0], "Collect 0.5 continue", *without[1:]]


def test_evidence_of_an_ignored_guest_is_taken_at_its_first_panic() -> None:
    keeping = replace(POLICY, evidence=Evidence(budget=0.5))
    again = replace(PANICKED, again=True)
    assert steps(make_plan(decision("ignore"), keeping, MODERN, again)) == expected(CONT)
    assert Collect in map(type, make_plan(decision("preserve"), keeping, MODERN, again).steps)


@pytest.mark.parametrize("effective", ["coredump-destroy", "coredump-restart", "coredump-ignore"])
def test_a_required_dump_stands_in_the_way_of_the_action(effective: str) -> None:
    policy = replace(POLICY, coredump=replace(POLICY.coredump, required=True))
    plan = make_plan(decision(effective), policy, MODERN, PANICKED)
    assert "Dump 8 preserve" in steps(plan)


@pytest.mark.parametrize(
    ("wanted", "offered", "written"),
    [
        (DumpFormat.KDUMP_LZO, (DumpFormat.ELF, DumpFormat.KDUMP_LZO), DumpFormat.KDUMP_LZO),
        (DumpFormat.KDUMP_LZO, (DumpFormat.ELF, DumpFormat.KDUMP_ZLIB), DumpFormat.ELF),
        (DumpFormat.ELF_ZSTD, (DumpFormat.ELF,), DumpFormat.ELF_ZSTD),
        (DumpFormat.KDUMP_ZLIB, (DumpFormat.ELF,), DumpFormat.KDUMP_ZLIB),
        (DumpFormat.KDUMP_LZO, (), DumpFormat.ELF),
    ],
)
def test_a_dump_is_in_a_format_that_this_qemu_writes(
    wanted: DumpFormat, offered: tuple[DumpFormat, ...], written: DumpFormat
) -> None:
    capability: Capability = replace(MODERN, dump_formats=offered)
    policy = replace(POLICY, coredump=replace(POLICY.coredump, format=wanted))
    plan = make_plan(decision("coredump-preserve"), policy, capability, PANICKED)
    assert [step.format for step in plan.steps if isinstance(step, Dump)] == [written]


def test_the_relaunch_command_is_the_configured_one() -> None:
    plan = make_plan(decision("restart", relaunch=True), POLICY, MODERN, GONE)
    assert [s.command for s in plan.steps if isinstance(s, RunRelaunch)] == [RELAUNCH.command]
