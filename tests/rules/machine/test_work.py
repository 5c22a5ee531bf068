"""QEMU's own work, followed by its events: what proves that nothing is under way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panicd.rules.machine import State, effects, step
from panicd.rules.machine.inputs import Heard, Moment
from panicd.rules.machine.state import AskingState, Resting, Then
from panicd.rules.machine.vm import Vm, follow
from panicd.rules.machine.work import JOBS_AT_MOST, Work, found_work
from panicd.rules.on_crash import OnCrash
from panicd.rules.qapi import (
    MAX_TEXT,
    Event,
    GuestPanickedEvent,
    JobStatusEvent,
    MigrationEvent,
    PanicAction,
    RunState,
    StopEvent,
    SuspendEvent,
)
from panicd.rules.settings import Policy
from tests.rules.strategies import COREDUMP, MODERN, NOW

IDLE = Vm(RunState.RUNNING, MODERN, work=Work())
PANIC = GuestPanickedEvent(0.0, PanicAction.PAUSE)
NO_DUMP = {"status": "none", "completed": 0, "total": 0}
MOMENT = Moment(NOW, 0.0, Policy(COREDUMP, OnCrash.RESTART))


def heard(vm: Vm, *events: Event) -> Vm:
    for event in events:
        vm = follow(vm, event)
    return vm


def job(status: str, number: str = "disk") -> JobStatusEvent:
    return JobStatusEvent(0.0, number, status)


def migration(status: str) -> MigrationEvent:
    return MigrationEvent(0.0, status)


@pytest.mark.parametrize(
    ("events", "idle"),
    [
        ((), True),
        ((job("created"),), False),
        ((job("created"), job("running"), job("null")), True),
        ((job("ready"),), False),
        ((job("concluded"),), False),  # until somebody dismisses it
        ((job("created"), job("created", "other"), job("null")), False),
        ((job("null"),), True),
        ((migration("setup"),), False),
        ((migration("setup"), migration("active"), migration("cancelled")), True),
        ((migration("failed"),), True),
        ((migration("completed"),), True),
        ((migration("colo"),), False),
        ((migration("of-the-future"),), False),
        ((migration(""),), False),
    ],
)
def test_events_tell_what_is_under_way(events: tuple[Event, ...], *, idle: bool) -> None:
    vm = heard(IDLE, *events)
    assert vm.work is not None
    assert vm.work.is_nothing is idle
    assert heard(vm, PANIC).is_known_idle is idle


@pytest.mark.parametrize(
    "events",
    [
        (SuspendEvent(0.0),),  # a dump does not stop a guest that sleeps
        (job("created", ""), job("null", "")),
        tuple(job("created", str(number)) for number in range(JOBS_AT_MOST + 1)),
    ],
)
def test_what_can_not_be_followed_never_is_again(events: tuple[Event, ...]) -> None:
    vm = heard(IDLE, *events)
    assert vm.work is None
    assert heard(vm, job("null"), migration("none")).work is None


def test_so_many_jobs_are_followed() -> None:
    begun = [job("created", str(number)) for number in range(JOBS_AT_MOST)]
    ended = [job("null", str(number)) for number in range(JOBS_AT_MOST)]
    assert heard(IDLE, *begun, *ended).work == Work()


@pytest.mark.parametrize(
    "before", [(), (StopEvent(0.0),), (PANIC, StopEvent(0.0)), (PANIC, StopEvent(0.0), PANIC)]
)
def test_only_a_guest_that_ran_up_to_its_panic_is_known_to_be_idle(
    before: tuple[Event, ...],
) -> None:
    """Somebody may have begun a dump of one that was stopped."""
    assert heard(IDLE, PANIC).is_known_idle
    assert not heard(IDLE, *before).is_known_idle


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({}, Work()),
        ({"migration": {"status": "completed"}}, Work(migration="completed")),
        ({"migration": {"status": "active", "ram": {}}}, Work(migration="active")),
        ({"migration": {"status": 7}}, None),
        ({"migration": []}, None),
        ({"jobs": [{"id": "a", "status": "running"}, {"id": "b"}]}, Work(frozenset("ab"))),
        ({"jobs": [{"id": "a"}, {"id": "a"}]}, None),
        ({"jobs": [{"id": ""}]}, None),
        ({"jobs": [{"id": "a" * (MAX_TEXT + 1)}]}, None),
        ({"jobs": [7]}, None),
        ({"jobs": [{"id": str(number)} for number in range(JOBS_AT_MOST + 1)]}, None),
        ({"jobs": {}}, None),
        ({"dump": {"status": "completed"}}, Work()),
        ({"dump": {"status": "active"}}, None),
        ({"dump": {}}, None),
        ({"followed": ValueError("refused")}, None),
        ({"followed": None}, None),
    ],
)
def test_first_answers(changed: dict[str, Any], found: Work | None) -> None:
    answers = {"followed": {}, "migration": {}, "jobs": [], "dump": NO_DUMP} | changed
    assert found_work(**answers) == found


statuses = st.sampled_from(["created", "running", "ready", "concluded", "null"])
events = st.lists(st.tuples(st.sampled_from("abc"), statuses))


@given(events, st.integers(0, 20))
def test_events_from_before_the_answer_change_nothing(
    told: list[tuple[str, str]], before: int
) -> None:
    """An answer tells of some events that are heard once more after it."""
    alive = {number for number, status in dict(told).items() if status != "null"}
    known = {number for number, status in dict(told[:before]).items() if status != "null"}
    vm = replace(IDLE, work=Work(frozenset(known)))
    said = [job(status, number) for number, status in told]
    assert heard(vm, *said).work == Work(frozenset(alive))


def test_work_does_not_put_off_a_look_at_the_guest() -> None:
    state = State(vm=replace(IDLE, run_state=RunState.INMIGRATE), phase=Resting())
    _, made = step(state, Heard(StopEvent(0.0)), MOMENT)
    assert made
    after, made = step(state, Heard(migration("active")), MOMENT)
    assert made == ()
    assert after.vm is not None
    assert after.vm.work == Work(migration="active")


def test_work_that_begins_while_an_answer_is_due_is_known_and_takes_no_room() -> None:
    state = State(vm=IDLE, phase=AskingState(Then.LOOK))
    state, made = step(state, Heard(job("created")), MOMENT)
    assert (made, state.deferred) == ((), ())
    assert state.vm is not None
    assert state.vm.work == Work(frozenset({"disk"}))


def test_one_is_asked_that_has_work_and_one_is_not_that_has_none() -> None:
    for events, asked in [((), False), ((job("created"),), True)]:
        state = State(vm=heard(IDLE, *events), phase=Resting())
        _, made = step(state, Heard(PANIC), MOMENT)
        assert any(isinstance(each, effects.Send) for each in made) is asked
