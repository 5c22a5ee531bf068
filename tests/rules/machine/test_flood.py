"""How many panics are ignored."""

from __future__ import annotations

from dataclasses import replace

import pytest

from panicd.rules.incident import State as IncidentState
from panicd.rules.machine.inputs import Heard
from panicd.rules.on_crash import Action, OnCrash
from panicd.rules.qapi import GuestPanickedEvent, PanicAction
from panicd.rules.settings import Flood
from tests.rules.machine.test_table import Machine

PANIC = GuestPanickedEvent(0.0, PanicAction.RUN)


def ignoring(flood: Flood) -> Machine:
    """A machine whose guest's panics are ignored, with one panic so far."""
    machine = Machine(OnCrash.IGNORE)
    machine.moment = machine.moment._replace(policy=replace(machine.moment.policy, flood=flood))
    machine.attach()
    machine.hear(PANIC)
    machine.durable()
    assert machine.incident is IncidentState.RUNNING_ON
    return machine


def panics_again(machine: Machine, count: int, *, after: float = 0.0) -> bool:
    """Have it panic again, and return whether its guest is no longer ignored."""
    moment = machine.moment
    machine.moment = moment._replace(now=moment.now + after, ticks=moment.ticks + after)
    machine.tell(Heard(PANIC, count))
    return machine.incident is not IncidentState.RUNNING_ON


@pytest.mark.parametrize(("counts", "floods"), [([10], False), ([11], True), ([5, 5, 1], True)])
def test_more_than_the_limit_is_a_flood(counts: list[int], *, floods: bool) -> None:
    machine = ignoring(Flood(max=10, window=5.0))
    assert [panics_again(machine, count) for count in counts][-1] is floods


def test_what_comes_slowly_is_none() -> None:
    machine = ignoring(Flood(max=10, window=5.0))
    assert not any(panics_again(machine, 1, after=0.6) for _ in range(1000))


def test_none_is_ended_where_it_is_to_be_ignored() -> None:
    machine = ignoring(Flood(max=1, then=Action.IGNORE))
    assert not any(panics_again(machine, 1000, after=0.1) for _ in range(100))
