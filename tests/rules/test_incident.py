from dataclasses import replace
from itertools import groupby
from typing import Final, Literal

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from panicd.rules.incident import (
    TRANSITIONS,
    Acknowledged,
    AnyEntry,
    Asked,
    Closed,
    Decided,
    Ending,
    Enforced,
    IllegalTransitionError,
    Incident,
    Mark,
    Observed,
    Opened,
    Outcome,
    Repeated,
    Settled,
    Source,
    State,
    StepBegun,
    StepEnded,
    StepRecord,
    apply,
)
from panicd.rules.on_crash import Action, OnCrash
from panicd.rules.plan import Collect, Plan, make_plan
from panicd.rules.policy import decide
from panicd.rules.settings import Policy
from tests.rules.strategies import (
    COREDUMP,
    MODERN,
    NOW,
    PANICKED,
    capabilities,
    policies,
    situations,
)

OPENED = Opened(NOW, "vm", "", "/run/vm.qmp", "boot/1/2", Source.EVENT)
NEW = Incident("20270115T080000-00000000", OPENED)
RESTART = Policy(COREDUMP, OnCrash.COREDUMP_RESTART)
PLAN = make_plan(decide(RESTART, MODERN, PANICKED, now=NOW), RESTART, MODERN, PANICKED)
SETTLED: Final[
    dict[Mark, Literal[State.PRESERVED, State.RUNNING_ON, State.FAILED, State.RESET]]
] = {
    Mark.PRESERVED: State.PRESERVED,
    Mark.RUNNING_ON: State.RUNNING_ON,
    Mark.FAILED: State.FAILED,
    Mark.RESET: State.RESET,
}

# What each entry leads to; the entries that a state is not named for have no place in it.
EXPECTED = {
    "detected": {"decided": "decided", "reset": "reset", "closed": "closed"},
    "decided": {
        "decided": "decided",
        "step": "acting",
        "preserved": "preserved",
        "running-on": "running-on",
        "failed": "failed",
        "reset": "reset",
        "closed": "closed",
    },
    "acting": {
        "decided": "decided",
        "step": "acting",
        "preserved": "preserved",
        "running-on": "running-on",
        "failed": "failed",
        "reset": "reset",
        "closed": "closed",
    },
    "preserved": {"decided": "decided", "reset": "reset", "closed": "closed"},
    "running-on": {"decided": "decided", "reset": "reset", "closed": "closed"},
    "failed": {"decided": "decided", "reset": "reset", "closed": "closed"},
    "reset": {"decided": "decided", "closed": "closed"},
    "closed": {},
}


def entry_of(mark: Mark) -> AnyEntry:
    match mark:
        case Mark.DECIDED:
            return Decided(NOW, PLAN)
        case Mark.STEP:
            return StepBegun(NOW, 0)
        case Mark.CLOSED:
            return Closed(NOW, Ending.DESTROYED)
        case _:
            return Settled(NOW, SETTLED[mark])


@pytest.mark.parametrize("mark", Mark)
@pytest.mark.parametrize("state", State)
def test_every_entry_in_every_state(state: State, mark: Mark) -> None:
    incident = replace(NEW, state=state, plan=PLAN)
    leads_to = EXPECTED[state].get(mark)
    if leads_to is None:
        assert (state, mark) not in TRANSITIONS
        with pytest.raises(IllegalTransitionError, match=f"{mark} in state {state}"):
            apply(incident, entry_of(mark))
    else:
        assert apply(incident, entry_of(mark)).state == leads_to


@pytest.mark.parametrize("index", [-1, len(PLAN.steps)])
def test_a_step_that_the_plan_has_not(index: int) -> None:
    with pytest.raises(IllegalTransitionError, match="no step"):
        apply(apply(NEW, Decided(NOW, PLAN)), StepBegun(NOW, index))


def test_a_step_ends_once_and_after_it_began() -> None:
    ended = StepEnded(NOW, 1, Outcome.DONE)
    incident = apply(apply(NEW, Decided(NOW, PLAN)), StepBegun(NOW, 0))
    with pytest.raises(IllegalTransitionError, match="before it began"):
        apply(incident, ended)
    incident = apply(apply(incident, StepBegun(NOW, 1)), ended)
    with pytest.raises(IllegalTransitionError, match="before it began"):
        apply(incident, ended)


def test_nothing_is_known_of_the_steps_after_one_that_is_taken_again() -> None:
    incident = apply(NEW, Decided(NOW, PLAN))
    for index in (0, 1, 2):
        incident = apply(incident, StepBegun(NOW, index))
        incident = apply(incident, StepEnded(NOW + 1, index, Outcome.DONE, "seen"))
    incident = apply(incident, StepBegun(NOW + 2, 1))
    assert incident.steps == {
        0: StepRecord(NOW, NOW + 1, Outcome.DONE, "seen"),
        1: StepRecord(NOW + 2),
    }


def test_an_incident_is_opened_once() -> None:
    with pytest.raises(IllegalTransitionError, match="opened twice"):
        apply(NEW, OPENED)


def test_a_panic_after_the_end_is_another_incident() -> None:
    with pytest.raises(IllegalTransitionError, match="after its end"):
        apply(apply(NEW, Closed(NOW, Ending.RESTARTED)), Repeated(NOW, 1))


def test_what_is_only_noted_changes_no_state() -> None:
    incident = apply(NEW, Decided(NOW, PLAN))
    notes = (
        Asked(NOW, 0, "release", "why"),
        Observed(NOW, "migration began"),
        Acknowledged(NOW, 0, "seen"),
        Enforced(NOW),
        Repeated(NOW, 3),
    )
    noted = incident
    for entry in notes:
        noted = apply(noted, entry)
    assert noted == replace(incident, repeats=3, enforced=1, acknowledged=notes[2])


@pytest.mark.parametrize(
    ("ending", "counts"),
    [
        (Ending.RESTARTED, True),
        (Ending.RELAUNCHED, True),
        (Ending.FOREIGN_RESET, False),
        (Ending.GUEST_RESET, False),
        (Ending.RELEASED, False),
        (Ending.DESTROYED, False),
    ],
)
def test_which_endings_are_restarts_of_panicds(ending: Ending, counts: bool) -> None:
    incident = apply(NEW, Closed(NOW + 5, ending))
    assert incident.restarted_at == (NOW + 5 if counts else None)
    assert not incident.is_open


plans = st.builds(
    lambda policy, capability, situation: make_plan(
        decide(policy, capability, situation, now=NOW), policy, capability, situation
    ),
    policies,
    capabilities,
    situations,
)


class History(RuleBasedStateMachine):
    """An incident through any sequence of entries that is legal."""

    @initialize()
    def open(self) -> None:
        self.incident = NEW
        self.plans: list[Plan] = []
        self.repeats = 0

    def add(self, entry: AnyEntry) -> None:
        before, copy = self.incident, replace(self.incident, steps=dict(self.incident.steps))
        self.incident = apply(self.incident, entry)
        assert before == copy, "the incident before an entry is left as it was"

    def legal(self, mark: Mark) -> bool:
        return (self.incident.state, mark) in TRANSITIONS

    @precondition(lambda self: self.legal(Mark.DECIDED))
    @rule(plan=plans)
    def decide(self, plan: Plan) -> None:
        self.add(Decided(NOW, plan))
        self.plans.append(plan)

    @precondition(lambda self: self.legal(Mark.STEP) and self.plans[-1].steps)
    @rule(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.plans[-1].steps) - 1))
        self.add(StepBegun(NOW, index))
        assert self.incident.steps[index] == StepRecord(NOW)
        assert max(self.incident.steps) == index

    @precondition(
        lambda self: (
            self.legal(Mark.STEP)
            and any(record.outcome is None for record in self.incident.steps.values())
        )
    )
    @rule(outcome=st.sampled_from(Outcome), data=st.data())
    def end(self, outcome: Outcome, data: st.DataObject) -> None:
        running = [i for i, r in self.incident.steps.items() if r.outcome is None]
        index = data.draw(st.sampled_from(running))
        self.add(StepEnded(NOW + 1, index, outcome, "detail"))
        assert self.incident.steps[index] == StepRecord(NOW, NOW + 1, outcome, "detail")

    @precondition(lambda self: self.legal(Mark.PRESERVED))
    @rule(mark=st.sampled_from(sorted(SETTLED)))
    def settle(self, mark: Mark) -> None:
        self.add(Settled(NOW, SETTLED[mark]))

    @precondition(lambda self: self.incident.is_open)
    @rule(count=st.integers(1, 10**6))
    def repeat(self, count: int) -> None:
        self.add(Repeated(NOW, count))
        self.repeats += count

    @precondition(lambda self: self.legal(Mark.CLOSED) and len(self.plans) > 1)
    @rule(ending=st.sampled_from(Ending))
    def close(self, ending: Ending) -> None:
        self.add(Closed(NOW, ending))

    @rule(entry=st.sampled_from([entry_of(mark) for mark in Mark]))
    def refuse(self, entry: AnyEntry) -> None:
        """Whatever has no place is refused, and what has one is left to the rules above."""
        try:
            apply(self.incident, entry)
        except IllegalTransitionError:
            return
        assert self.incident.is_open

    @invariant()
    def is_the_sum_of_its_entries(self) -> None:
        incident = self.incident
        plan = self.plans[-1] if self.plans else None
        assert incident.opened == OPENED
        assert incident.plan == plan
        made = [plan.decision for plan in self.plans]
        assert incident.decisions == tuple(decision for decision, _ in groupby(made))
        assert incident.decision == (plan.decision if plan else None)
        assert incident.action is (plan.decision.action if plan else Action.NONE)
        assert set(incident.steps) <= set(range(len(plan.steps) if plan else 0))
        assert incident.repeats == self.repeats
        assert incident.is_open is (incident.closed is None)


TestHistory = History.TestCase


def test_panic_s_words_are_those_of_evidence_that_was_taken() -> None:
    collecting = Plan(PLAN.decision, (Collect(3.0),))
    incident = NEW

    def collected(outcome: Outcome, detail: str) -> str:
        nonlocal incident
        for entry in (
            Decided(NOW, collecting),
            StepBegun(NOW, 0),
            StepEnded(NOW, 0, outcome, detail),
        ):
            incident = apply(incident, entry)
        return incident.panic_line

    assert collected(Outcome.UNKNOWN, "the session ended") == ""
    assert collected(Outcome.DONE, "Oops") == "Oops"
    assert collected(Outcome.DONE, "") == "Oops"  # less was found the second time
    assert collected(Outcome.SKIPPED, "foreign-reset") == "Oops"
