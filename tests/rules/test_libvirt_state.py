"""How libvirt's words for a domain's state are taken."""

from __future__ import annotations

import pytest

from panicd.libvirt.protocol import State
from panicd.rules import libvirt_state
from panicd.rules.capability import Capability
from panicd.rules.libvirt_state import lags, run_state
from panicd.rules.machine.vm import Stand, Vm, follow, stand_of
from panicd.rules.qapi import (
    Event,
    GuestPanickedEvent,
    PanicAction,
    ResetEvent,
    ResumeEvent,
    RunState,
    StopEvent,
)

PANIC = GuestPanickedEvent(0.0, PanicAction.PAUSE)
STOP, RESUME, RESET = StopEvent(0.0), ResumeEvent(0.0), ResetEvent(0.0, guest=False, reason="")


@pytest.mark.parametrize("state", State)
def test_the_numbers_are_those_of_the_protocol(state: State) -> None:
    assert getattr(libvirt_state, state.name) == state


@pytest.mark.parametrize(
    ("state", "reason", "taken_for", "stand"),
    [
        (State.RUNNING, 5, RunState.RUNNING, Stand.RUNS),
        (State.BLOCKED, 0, RunState.RUNNING, Stand.RUNS),
        (State.PMSUSPENDED, 0, RunState.SUSPENDED, Stand.RUNS),
        (State.CRASHED, 1, RunState.GUEST_PANICKED, Stand.PANICKED),
        (State.PAUSED, 10, RunState.PRELAUNCH, Stand.RESET),
        (State.PAUSED, 11, RunState.PRELAUNCH, Stand.RESET),
        (State.PAUSED, 1, RunState.PAUSED, Stand.STOPPED),
        (State.PAUSED, 2, RunState.FINISH_MIGRATE, Stand.STOPPED),
        (State.PAUSED, 5, RunState.IO_ERROR, Stand.STOPPED),
        (State.PAUSED, 99, RunState.PAUSED, Stand.STOPPED),
        (State.SHUTDOWN, 1, RunState.SHUTDOWN, Stand.STOPPED),
        (State.NOSTATE, 0, RunState.UNKNOWN, Stand.RUNS),
        (99, 0, RunState.UNKNOWN, Stand.RUNS),
    ],
)
def test_a_state_is_a_run_state(state: int, reason: int, taken_for: RunState, stand: Stand) -> None:
    assert run_state(state, reason) is taken_for
    assert stand_of(taken_for) is stand


@pytest.mark.parametrize(
    ("events", "stand"),
    [
        ([], Stand.RUNS),
        ([PANIC], Stand.PANICKED),
        ([PANIC, STOP], Stand.PANICKED),
        ([PANIC, STOP, RESET], Stand.RESET),
        ([PANIC, STOP, RESET, RESUME], Stand.RUNS),
        ([PANIC, STOP, RESUME], Stand.RUNS),
        ([STOP], Stand.STOPPED),
        ([STOP, PANIC], Stand.PANICKED),
        ([PANIC, STOP, RESET, RESUME, PANIC, STOP], Stand.PANICKED),
    ],
)
def test_what_the_events_lead_one_to_expect(events: list[Event], stand: Stand) -> None:
    vm = Vm(RunState.RUNNING, Capability((7, 2, 0)))
    for event in events:
        vm = follow(vm, event)
    assert vm.stand is stand


@pytest.mark.parametrize(
    ("wanted", "behind"),
    [
        (Stand.RUNS, set()),
        (Stand.STOPPED, {Stand.RUNS}),
        (Stand.PANICKED, {Stand.RUNS, Stand.STOPPED, Stand.RESET}),
        (Stand.RESET, {Stand.RUNS, Stand.STOPPED}),
    ],
)
def test_libvirt_is_behind_with_what_was_heard(wanted: Stand, behind: set[Stand]) -> None:
    assert {stand for stand in Stand if lags(stand, wanted)} == behind
