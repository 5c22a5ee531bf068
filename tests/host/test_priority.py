"""A reaction goes first; nobody is held up for long, and nobody while there is none."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from panicd.host import priority as module
from panicd.host.priority import PASSED_WITHIN, WAITS_AT_MOST, Priority
from tests.parts.patience import fail_after


@contextmanager
def reaction(priority: Priority) -> Iterator[None]:
    priority.begin()
    yield
    priority.end()


async def test_nobody_waits_while_there_is_no_reaction(autojump_clock: MockClock) -> None:
    priority = Priority()
    await priority.give_way_async()
    with reaction(priority):
        pass
    await priority.give_way_async()
    assert list(priority.in_turn([1, 2])) == [1, 2]
    assert autojump_clock.current_time() == 0.0


async def test_a_task_goes_on_when_the_reaction_is_over() -> None:
    priority = Priority()
    passed: list[str] = []

    async def other() -> None:
        await priority.give_way_async()
        passed.append("other")

    with fail_after(5):
        async with trio.open_nursery() as nursery:
            with reaction(priority):
                nursery.start_soon(other)
                await trio.lowlevel.checkpoint()
                passed.append("reaction")
    assert passed == ["reaction", "other"]


async def test_a_task_waits_for_the_last_of_several_reactions() -> None:
    priority = Priority()
    passed = trio.Event()

    async def other() -> None:
        await priority.give_way_async()
        passed.set()

    async with trio.open_nursery() as nursery:
        with reaction(priority):
            with reaction(priority):
                nursery.start_soon(other)
                await wait_all_tasks_blocked()
            await wait_all_tasks_blocked()
            assert not passed.is_set()
        await passed.wait()


async def test_a_reaction_that_takes_its_time_holds_no_task_up(autojump_clock: MockClock) -> None:
    priority = Priority()
    with reaction(priority):
        await priority.give_way_async()
    assert 0.0 < autojump_clock.current_time() <= WAITS_AT_MOST


def test_a_thread_goes_on_when_the_reaction_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("PASSED_WITHIN", "WAITS_AT_MOST"):
        monkeypatch.setattr(module, limit, 60.0)
    priority = Priority()
    passed: list[str] = []
    other = threading.Thread(target=lambda: passed.extend(priority.in_turn(["one", "two"])))
    with reaction(priority):
        other.start()
        other.join(0.05)
        assert other.is_alive()
        assert not passed
    other.join(5)
    assert passed == ["one", "two"]


def test_a_reaction_that_takes_its_time_holds_no_thread_up() -> None:
    priority = Priority()
    parts = range(int(2 * PASSED_WITHIN / WAITS_AT_MOST))
    with reaction(priority):
        assert list(priority.in_turn(parts)) == list(parts)


def test_it_is_quiet_from_the_end_of_the_last_reaction_on(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))
    priority = Priority()
    with reaction(priority):
        now += 60
        with reaction(priority):
            pass
        assert priority.quiet_for() == 0.0
    now += 7
    assert priority.quiet_for() == 7.0
