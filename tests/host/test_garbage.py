"""All objects are looked through while nothing happens, and never in a reaction."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import trio
from trio.testing import MockClock

from panicd.host import garbage
from panicd.host.garbage import NEW, QUIET, SPARED, Spare, look_through


class Cycle:
    """Only the collector can free it."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The collector looks at nothing by itself, and many new objects have come."""
    before = gc.get_threshold()
    monkeypatch.setattr(garbage, "COLLECT_AFTER", (0, 0, 0))
    monkeypatch.setattr(gc, "get_count", lambda: (0, 0, NEW))
    monkeypatch.setattr(garbage, "spare", Spare())
    yield monkeypatch
    gc.set_threshold(*before)
    gc.unfreeze()
    gc.enable()


def lost_cycle() -> weakref.ref[Cycle]:
    """Return whether a cycle that nobody needs is still there: the reference then works."""
    return weakref.ref(Cycle())


async def look_for(seconds: float, quiet_for: float) -> None:
    with trio.move_on_after(seconds):
        await look_through(lambda: quiet_for)


def is_freed(cycle: weakref.ref[Cycle], quiet_for: float) -> bool:
    """Look for a while, and tell whether a cycle was freed in it."""
    trio.run(look_for, 1.5 * QUIET, quiet_for, clock=MockClock(autojump_threshold=0))
    return cycle() is None


@pytest.mark.usefixtures("collector")
def test_all_is_looked_through_when_it_is_quiet() -> None:
    assert is_freed(lost_cycle(), quiet_for=QUIET)
    assert gc.get_freeze_count() > 0  # the next look of Python's own is at new objects


@pytest.mark.usefixtures("collector")
def test_a_look_waits_for_quiet() -> None:
    assert not is_freed(lost_cycle(), quiet_for=QUIET - 0.1)


def test_nothing_is_looked_through_without_new_objects(
    collector: pytest.MonkeyPatch,
) -> None:
    collector.setattr(gc, "get_count", lambda: (0, 0, NEW - 1))
    assert not is_freed(lost_cycle(), quiet_for=QUIET)


@pytest.mark.usefixtures("collector")
def test_a_cycle_that_was_set_aside_is_freed_later() -> None:
    kept = Cycle()
    cycle = weakref.ref(kept)
    assert not is_freed(cycle, quiet_for=QUIET)
    del kept
    assert is_freed(cycle, quiet_for=QUIET)


def test_the_next_look_waits_the_longer_the_last_one_took(
    collector: pytest.MonkeyPatch,
) -> None:
    clock = MockClock(autojump_threshold=0)
    looks: list[float] = []
    times = iter([0.0, 0.5] * 3)  # each look takes half a second

    def collect() -> int:
        looks.append(clock.current_time())
        return 0

    collector.setattr(gc, "collect", collect)
    collector.setattr(garbage, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    trio.run(look_for, 1200, QUIET, clock=clock)
    first, second, third = looks
    assert first == QUIET
    assert second - first == third - second == 500 + QUIET


@pytest.mark.usefixtures("collector")
def test_python_looks_at_nothing_while_many_sessions_begin() -> None:
    spare = Spare()
    spare.begin(4)
    assert not gc.isenabled()
    spare.begin(4)
    assert not gc.isenabled()
    spare.end()
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0


@pytest.mark.usefixtures("collector")
def test_no_more_sessions_begin_so_than_are_allowed_until_all_is_looked_through() -> None:
    spare = garbage.spare
    spare.begin(SPARED)
    assert not gc.isenabled()
    spare.begin(1)
    assert gc.isenabled()
    spare.begin(1)
    assert gc.isenabled()
    trio.run(look_for, 1.5 * QUIET, QUIET, clock=MockClock(autojump_threshold=0))
    spare.begin(1)
    assert not gc.isenabled()


@pytest.mark.usefixtures("collector")
def test_what_sessions_left_is_freed_in_the_next_look() -> None:
    garbage.spare.begin(4)
    cycle = lost_cycle()
    garbage.spare.end()
    gc.collect()
    assert cycle() is not None  # it was set aside
    assert is_freed(cycle, quiet_for=QUIET)
