"""Events are handed over in their order; those that come too early are bounded, and counted."""

from __future__ import annotations

import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from panicd.qemu.event_outlet import LIMIT, EventOutlet, Heard
from panicd.rules.qapi import (
    Event,
    GuestPanickedEvent,
    PanicAction,
    ResetEvent,
    ResumeEvent,
    StopEvent,
)

PAUSE = GuestPanickedEvent(0.0, PanicAction.PAUSE)
RUN = GuestPanickedEvent(0.0, PanicAction.RUN)
STOP = StopEvent(0.0)
RESUME = ResumeEvent(0.0)
RESET = ResetEvent(0.0, guest=True, reason="guest-reset")


def nobody() -> None:
    pass


def kept(*events: Event) -> tuple[EventOutlet, list[Heard]]:
    """Put events that nobody takes yet; return them as they are handed over then."""
    outlet = EventOutlet()
    for event in events:
        outlet.put(event)
    taken: list[Heard] = []
    outlet.hand_over(taken.append, nobody)
    return outlet, taken


async def test_events_come_in_their_order() -> None:
    outlet, taken = kept(PAUSE, STOP)
    outlet.put(RESUME)
    assert [heard.event for heard in taken] == [PAUSE, STOP, RESUME]


async def test_early_panics_in_a_row_are_one_with_a_count(
    mock_clock: trio.testing.MockClock,
) -> None:
    outlet = EventOutlet()
    first_at = trio.current_time()
    for _ in range(1000):
        outlet.put(RUN)
        mock_clock.jump(1)
    taken: list[Heard] = []
    outlet.hand_over(taken.append, nobody)
    assert taken == [Heard(RUN, first_at, 1000)]


async def test_panics_that_differ_or_are_apart_stay_apart() -> None:
    _, taken = kept(PAUSE, RUN, STOP, RUN, RUN)
    assert [heard.count for heard in taken] == [1, 1, 1, 2]


async def test_what_is_too_much_is_given_up_and_said_so() -> None:
    outlet, taken = kept(*[PAUSE, STOP] * LIMIT)
    assert len(taken) == LIMIT
    assert (outlet.lost, outlet.lost_panics) == (True, LIMIT // 2)


@given(st.lists(st.sampled_from([PAUSE, RUN, STOP, RESUME, RESET])))
def test_no_panic_is_lost_and_what_is_kept_is_bounded(events: list[Event]) -> None:
    async def run() -> tuple[EventOutlet, list[Heard]]:
        return kept(*events * 5)

    outlet, taken = trio.run(run)
    panics = sum(heard.count for heard in taken if isinstance(heard.event, GuestPanickedEvent))
    expected = sum(isinstance(event, GuestPanickedEvent) for event in events) * 5
    assert panics + outlet.lost_panics == expected
    assert len(taken) <= LIMIT


async def test_end_comes_after_the_events_and_is_told_once() -> None:
    told: list[str] = []
    outlet = EventOutlet()
    outlet.put(STOP)
    outlet.close()
    outlet.hand_over(lambda _: told.append("event"), lambda: told.append("end"))
    outlet.close()
    assert told == ["event", "end"]


async def test_who_has_let_go_is_told_nothing() -> None:
    outlet, taken = kept()
    outlet.let_go()
    outlet.put(STOP)
    outlet.close()
    assert not taken
