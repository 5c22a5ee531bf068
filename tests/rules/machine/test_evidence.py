"""Evidence that is taken beside QEMU's questions and the commit, and what comes in between."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest

from panicd.rules.incident import Incident, Outcome, StepResult
from panicd.rules.machine import effects
from panicd.rules.machine.inputs import (
    Answered,
    Durable,
    Elapsed,
    Finished,
    Heard,
    Input,
    Lost,
    NoAnswer,
    Reconsider,
)
from panicd.rules.machine.state import Interrupted, Readying
from panicd.rules.on_crash import OnCrash
from panicd.rules.plan import Collect, Quit, SystemReset
from panicd.rules.policy import Reason
from panicd.rules.qapi import Event, RunState
from panicd.rules.recovery import Found, GiveUp, GoOn, recover
from panicd.rules.settings import Evidence
from tests.rules.machine.test_table import IDLE, PANIC, RESET, RESUME, STOP, Machine

WORDS = StepResult(Outcome.DONE, "Kernel panic - not syncing: VFS")
BUSY: tuple[object, ...] = ({"status": "active"}, *IDLE[1:])
PANICKED = Found(RunState.GUEST_PANICKED, same_process=True, version=(7, 2, 0))


def collecting(on_crash: OnCrash = OnCrash.RESTART) -> Machine:
    """Return the machine of a running guest whose evidence will be taken."""
    machine = Machine(on_crash)
    policy = replace(machine.moment.policy, evidence=Evidence(budget=3.0))
    machine.moment = machine.moment._replace(policy=policy)
    machine.attach()
    return machine


def panicked(on_crash: OnCrash = OnCrash.RESTART) -> Machine:
    """Return the machine of a guest whose evidence is being taken."""
    machine = collecting(on_crash)
    machine.hear(PANIC, STOP)
    assert len(machine.all(effects.Collect)) == 1
    return machine


def begun(machine: Machine, kind: type) -> int:
    """Return how often a step counts as begun."""
    incident = machine.state.incident
    assert incident is not None
    assert incident.plan is not None
    index = next(i for i, step in enumerate(incident.plan.steps) if isinstance(step, kind))
    return incident.begun.get(index, 0) if index in incident.steps else 0


def test_evidence_is_taken_once_the_guest_has_stopped() -> None:
    machine = collecting()
    machine.hear(PANIC)
    assert machine.all(effects.Collect) == []
    machine.hear(STOP)
    assert len(machine.all(effects.Collect)) == 1


def test_the_answer_says_too_that_the_guest_has_stopped() -> None:
    machine = collecting()
    machine.hear(PANIC)
    machine.answer(*IDLE)
    assert len(machine.all(effects.Collect)) == 1


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize(
    ("on_crash", "command"), [(OnCrash.RESTART, "system_reset"), (OnCrash.DESTROY, "quit")]
)
def test_the_command_follows_when_all_three_are_there(
    on_crash: OnCrash, command: str, order: tuple[int, ...]
) -> None:
    machine = panicked(on_crash)
    serial = machine.state.serial
    inputs: list[Input] = [Answered(serial, IDLE), Durable(serial), Finished(serial, WORDS)]
    for number in order:
        assert machine.sent == []
        machine.tell(inputs[number])
    assert machine.sent == [command]
    assert len(machine.all(effects.Collect)) == 1
    assert machine.state.incident is not None
    assert machine.state.incident.said == WORDS.detail


def test_everything_is_on_record_as_begun_by_the_first_commit() -> None:
    machine = panicked()
    assert len(machine.all(effects.Commit)) == 1
    assert begun(machine, Collect) == begun(machine, SystemReset) == 1


def test_a_hold_that_begins_with_evidence_under_way_prevents_the_command() -> None:
    machine = panicked()
    machine.moment = machine.moment._replace(held=True)
    machine.tell(Reconsider())
    machine.answer(*IDLE)
    machine.durable()
    machine.tell(Finished(machine.state.serial, WORDS))
    assert machine.sent == []
    assert machine.state.incident is not None
    assert machine.state.incident.decision is not None
    assert machine.state.incident.decision.reason is Reason.HELD
    assert machine.state.incident.said == WORDS.detail


def test_a_hold_that_begins_before_the_stop_prevents_evidence_too() -> None:
    machine = collecting()
    machine.hear(PANIC)
    machine.moment = machine.moment._replace(held=True)
    machine.hear(STOP)
    assert machine.all(effects.Collect) == []
    assert machine.sent == []


@pytest.mark.parametrize("by_others", [[RESET], [RESUME], [RESET, RESUME]])
def test_a_guest_that_others_let_go_meanwhile_is_left_alone(by_others: list[Event]) -> None:
    machine = panicked()
    machine.answer(*IDLE)
    machine.durable()
    machine.hear(*by_others)
    machine.tell(Finished(machine.state.serial, WORDS))
    assert machine.sent == []


def test_evidence_of_a_guest_that_others_reset_before_its_stop_is_not_taken() -> None:
    machine = collecting()
    machine.hear(PANIC, RESET, STOP)
    assert machine.all(effects.Collect) == []
    assert machine.sent == []


def test_slow_evidence_is_waited_for_and_qemu_is_asked_once_more() -> None:
    machine = panicked()
    machine.answer(*IDLE)
    machine.durable()
    machine.tell(Elapsed(machine.state.serial))
    assert begun(machine, SystemReset) == 0  # a crash from now on is one before the command
    assert begun(machine, Collect) == 1
    asked, commits = len(machine.all(effects.Send)), len(machine.all(effects.Commit))
    machine.tell(Finished(machine.state.serial, WORDS))
    assert len(machine.all(effects.Send)) == asked + 1
    assert len(machine.all(effects.Commit)) == commits + 1
    machine.answer(*IDLE)
    assert machine.sent == []
    machine.durable()
    assert machine.sent == ["system_reset"]
    assert len(machine.all(effects.Collect)) == 1


def test_a_slow_journal_does_not_have_evidence_taken_again() -> None:
    machine = panicked()
    machine.answer(*IDLE)
    machine.tell(Finished(machine.state.serial, WORDS))
    machine.tell(Elapsed(machine.state.serial))
    assert isinstance(machine.state.phase, Readying)
    machine.durable()
    assert machine.sent == ["system_reset"]


def test_a_busy_qemu_is_waited_for_after_its_evidence_is_taken() -> None:
    machine = panicked()
    machine.durable()
    machine.answer(*BUSY)
    machine.tell(Finished(machine.state.serial, WORDS))
    machine.answer(*BUSY)
    machine.durable()
    assert machine.sent == []
    machine.tell(Elapsed(machine.state.serial))
    machine.answer(*IDLE)
    machine.durable()
    machine.durable()
    assert machine.sent == ["system_reset"]
    assert len(machine.all(effects.Collect)) == 1


def test_a_guest_whose_stop_does_not_come_is_stopped_before_evidence() -> None:
    machine = collecting()
    machine.hear(PANIC)
    machine.durable()
    machine.answer(*IDLE[:3], {"status": "running"})
    assert machine.all(effects.Collect) == []
    assert begun(machine, Collect) == 0
    machine.tell(Elapsed(machine.state.serial))
    machine.answer({"status": "running"})
    machine.durable()
    assert machine.sent == ["stop"]
    machine.answer({})
    machine.answer({"status": "paused"})
    assert len(machine.all(effects.Collect)) == 1


@pytest.mark.parametrize("stopped", [True, False])
def test_a_session_that_ends_with_evidence_under_way_gets_no_command(*, stopped: bool) -> None:
    machine = collecting()
    machine.hear(PANIC, *([STOP] if stopped else []))
    machine.tell(Lost())
    lost = NoAnswer("the session ended", lost=True)
    machine.answer(lost, lost, lost, lost)
    machine.durable()
    if stopped:
        machine.tell(Finished(machine.state.serial, WORDS))
        machine.answer(lost, lost, lost, lost)
    assert len(machine.all(effects.Collect)) == stopped
    assert machine.sent == []


def test_a_session_that_ends_when_all_else_is_there_gets_no_command() -> None:
    machine = panicked()
    machine.answer(*IDLE)
    machine.durable()
    machine.tell(Lost())
    machine.tell(Finished(machine.state.serial, WORDS))
    assert machine.sent == []
    assert begun(machine, SystemReset) == 0


def test_evidence_whose_end_a_lost_session_hides_is_not_gone_on_from() -> None:
    machine = panicked()
    machine.answer(*IDLE)
    machine.durable()
    unknown = StepResult(Outcome.UNKNOWN, "getfd: broken pipe")
    machine.tell(Finished(machine.state.serial, unknown, lost=True))
    assert machine.sent == []
    assert isinstance(machine.state.phase, Interrupted)


def killed(on_crash: OnCrash) -> Incident:
    """Return an incident as it is when panicd is killed with evidence under way."""
    incident = panicked(on_crash).state.incident
    assert incident is not None
    return incident


@pytest.mark.parametrize("on_crash", [OnCrash.RESTART, OnCrash.DESTROY])
def test_evidence_is_taken_again_after_a_crash_but_not_for_ever(on_crash: OnCrash) -> None:
    incident = killed(on_crash)
    assert recover(incident, PANICKED) == GoOn(0)
    again = replace(incident, begun=dict.fromkeys(incident.begun, 2))
    assert recover(again, PANICKED) == GiveUp(1)


@pytest.mark.parametrize(
    ("on_crash", "kind"), [(OnCrash.RESTART, SystemReset), (OnCrash.DESTROY, Quit)]
)
def test_a_command_is_given_without_evidence_that_ended_panicd_twice(
    on_crash: OnCrash, kind: type
) -> None:
    incident = killed(on_crash)
    again = replace(incident, begun=dict.fromkeys(incident.begun, 2))
    machine = Machine(on_crash)
    machine.moment = collecting(on_crash).moment
    machine.attach(RunState.GUEST_PANICKED, incident=again)
    assert machine.all(effects.Collect) == []
    assert begun(machine, kind) == 3
    machine.answer(*IDLE)
    machine.durable()
    assert len(machine.sent) == 1
    assert machine.state.incident is not None
    # Killed again before the result: what was given up is not tried once more.
    once_more = replace(machine.state.incident, begun={**again.begun, 3: 2})
    assert recover(once_more, PANICKED) == GoOn(3)


def test_what_ended_before_the_guest_had_stopped_counts_as_no_try() -> None:
    machine = collecting()
    machine.hear(PANIC)
    machine.tell(Heard(RESUME))
    machine.answer(*IDLE[:3], {"status": "running"})
    assert machine.sent == []
    assert machine.all(effects.Collect) == []
