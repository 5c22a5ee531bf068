"""Log entries that wait: none is lost, all keep their order, and the urgent don't wait."""

import threading
from collections.abc import Callable

import pytest
import structlog
import trio
import trio.testing
from structlog.typing import EventDict

from panicd.host import backlog
from panicd.host.backlog import AT_ONCE, LATEST, Backlog


class Written:
    """What was written."""

    def __init__(self) -> None:
        self.what: list[object] = []

    def __call__(self, _method: str, event: EventDict) -> None:
        self.what.append(event["event"])


def sayer(waiting: Backlog) -> Callable[..., None]:
    def say(event: object, method: str = "info", **values: object) -> None:
        with pytest.raises(structlog.DropEvent):
            waiting(None, method, {"event": event, **values})

    return say


def test_what_is_said_while_nothing_runs_is_written_at_once() -> None:
    written = Written()
    sayer(Backlog(written))("one")
    assert written.what == ["one"]


async def test_entries_are_written_in_order_once_nothing_more_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = Written()
    monkeypatch.setattr(backlog, "QUIET", 0.05)
    waiting = Backlog(written)
    say = sayer(waiting)
    many = list(range(AT_ONCE * 3 + 1))
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(waiting.run)
            await trio.testing.wait_all_tasks_blocked()
            for number in many:
                say(number)
                await trio.lowlevel.checkpoint()
            assert written.what == []
            while len(written.what) < len(many):
                await trio.testing.wait_all_tasks_blocked(backlog.QUIET)
            nursery.cancel_scope.cancel()
    assert written.what == many


async def test_nothing_is_left_at_the_end() -> None:
    written = Written()
    waiting = Backlog(written)
    say = sayer(waiting)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(waiting.run)
        await trio.testing.wait_all_tasks_blocked()
        for number in range(50):
            say(number)
        nursery.cancel_scope.cancel()
    say("after")
    assert written.what == [*range(50), "after"]


@pytest.mark.parametrize("how", [{"method": "error"}, {"exc_info": True}])
async def test_the_urgent_is_written_at_once_after_what_waits(how: dict[str, object]) -> None:
    written = Written()
    waiting = Backlog(written)
    say = sayer(waiting)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(waiting.run)
        await trio.testing.wait_all_tasks_blocked()
        say("before")
        say("urgent", **how)
        assert written.what == ["before", "urgent"]
        nursery.cancel_scope.cancel()


async def test_another_threads_entry_is_written_at_once() -> None:
    written = Written()
    waiting = Backlog(written)
    say = sayer(waiting)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(waiting.run)
        await trio.testing.wait_all_tasks_blocked()
        say("before")
        other = threading.Thread(target=say, args=["other"])
        other.start()
        other.join()
        assert written.what == ["before", "other"]
        nursery.cancel_scope.cancel()


async def test_what_has_waited_long_is_written_though_there_is_no_idle_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = Written()
    waiting = Backlog(written)
    say = sayer(waiting)
    now = 1000.0
    monkeypatch.setattr("panicd.host.backlog.time.time", lambda: now)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(waiting.run)
            await trio.testing.wait_all_tasks_blocked()
            say("one")
            now += LATEST + 1
            while not written.what:  # never idle
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
    assert written.what == ["one"]


async def test_no_more_than_so_many_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "LIMIT", 10)
    written = Written()
    waiting = Backlog(written)
    say = sayer(waiting)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(waiting.run)
        await trio.testing.wait_all_tasks_blocked()
        for number in range(15):
            say(number)
        assert written.what == [0, 1, 2, 3, 4]
        nursery.cancel_scope.cancel()
