"""Events in order, coalesced and bounded; and no panic uncounted."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from panicd.qemu.event_buffer import LIMIT, EventBuffer, Heard, Overflow
from panicd.rules.qapi import (
    Event,
    GuestPanickedEvent,
    PanicAction,
    ResetEvent,
    ResumeEvent,
    StopEvent,
)
from tests.parts.patience import fail_after

PAUSE = GuestPanickedEvent(0.0, PanicAction.PAUSE)
RUN = GuestPanickedEvent(0.0, PanicAction.RUN)
STOP = StopEvent(0.0)
RESUME = ResumeEvent(0.0)
RESET = ResetEvent(0.0, guest=True, reason="guest-reset")


def filled(*events: Event) -> EventBuffer:
    buffer = EventBuffer()
    for event in events:
        buffer.put(event)
    return buffer


def popped(buffer: EventBuffer) -> list[Heard | Overflow]:
    found = []
    while (entry := buffer.pop()) is not None:
        found.append(entry)
    return found


def panics_in(entries: list[Heard | Overflow]) -> int:
    return sum(
        entry.panics
        if isinstance(entry, Overflow)
        else entry.count * isinstance(entry.event, GuestPanickedEvent)
        for entry in entries
    )


async def test_events_come_in_their_order() -> None:
    entries = popped(filled(PAUSE, STOP, RESUME))
    assert [entry.event for entry in entries if isinstance(entry, Heard)] == [PAUSE, STOP, RESUME]


async def test_panics_in_a_row_are_one_with_a_count(mock_clock: trio.testing.MockClock) -> None:
    buffer = EventBuffer()
    first_at = trio.current_time()
    for _ in range(1000):
        buffer.put(RUN)
        mock_clock.jump(1)
    assert popped(buffer) == [Heard(RUN, first_at, 1000)]
    assert buffer.coalesced == 999


async def test_panics_that_differ_or_are_apart_stay_apart() -> None:
    entries = popped(filled(PAUSE, RUN, STOP, RUN, RUN))
    assert [entry.count for entry in entries if isinstance(entry, Heard)] == [1, 1, 1, 2]


async def test_what_is_too_much_is_given_up_and_said_so() -> None:
    entries = popped(filled(*[PAUSE, STOP] * LIMIT))
    assert len(entries) == LIMIT + 1
    assert entries[-1] == Overflow(LIMIT // 2)


async def test_after_an_overflow_events_are_kept_again() -> None:
    buffer = filled(*[STOP] * (LIMIT + 1))
    popped(buffer)
    buffer.put(RESUME)
    (entry,) = popped(buffer)
    assert isinstance(entry, Heard)
    assert entry.event is RESUME


@given(st.lists(st.sampled_from([PAUSE, RUN, STOP, RESUME, RESET])))
def test_no_panic_is_lost_and_the_buffer_is_bounded(events: list[Event]) -> None:
    async def run() -> list[Heard | Overflow]:
        return popped(filled(*events * 5))

    entries = trio.run(run)
    assert panics_in(entries) == sum(isinstance(event, GuestPanickedEvent) for event in events) * 5
    assert len(entries) <= LIMIT + 1


@pytest.mark.parametrize("wake", ["put", "nudge", "close"])
async def test_waiting_ends_with_an_event_a_nudge_or_the_end(wake: str) -> None:
    buffer = EventBuffer()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(buffer.wait)
        await trio.testing.wait_all_tasks_blocked()
        getattr(buffer, wake)(*[STOP] * (wake == "put"))


async def test_nudge_that_comes_before_the_wait_is_not_lost() -> None:
    buffer = EventBuffer()
    buffer.nudge()
    with fail_after(1):
        await buffer.wait()
    assert buffer.pop() is None
    assert not buffer.ended


async def test_end_comes_after_the_events() -> None:
    buffer = filled(STOP)
    buffer.close()
    assert not buffer.ended
    popped(buffer)
    assert buffer.ended
