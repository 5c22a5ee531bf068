"""Panics that follow each other directly."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import trio
import trio.testing

from panicd.host.metrics import Metrics
from panicd.host.timers import Timers
from panicd.incident.gathering import GATHER, Gathering
from panicd.rules.machine.inputs import Heard
from panicd.rules.qapi import Event, GuestPanickedEvent, PanicAction, StopEvent
from tests.parts.background import background

STOPS = GuestPanickedEvent(0.0, PanicAction.PAUSE)
RUNS_ON = GuestPanickedEvent(0.0, PanicAction.RUN)
STOP = StopEvent(0.0)


async def test_those_with_one_action_are_one_with_a_count(
    mock_clock: trio.testing.MockClock,
) -> None:
    timers, coalesced = Timers(), list[int]()
    metrics = SimpleNamespace(events_coalesced=SimpleNamespace(inc=coalesced.append))
    gathering, told = Gathering(timers, cast("Metrics", metrics)), list[Heard]()

    def takes(event: Event, count: int = 1) -> bool:
        return gathering.takes(Heard(event, count), told.append)

    async with background() as nursery:
        nursery.start_soon(timers.run)
        assert not takes(STOPS)
        gathering.heard(STOPS)
        assert takes(STOPS, 5)
        assert takes(STOPS)
        assert not takes(RUNS_ON), "it leaves the guest otherwise"
        assert not takes(STOP)
        assert told == []
        mock_clock.jump(GATHER)
        await trio.testing.wait_all_tasks_blocked()
        assert told == [Heard(STOPS, 6)]
        gathering.heard(STOP)
        assert not takes(STOPS)
        gathering.tell_more(told.append)
    assert len(told) == 1
    assert coalesced == [5, 1]
