"""Log entries that wait: none is lost, all keep their order, and the urgent don't wait."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import structlog
import trio
import trio.testing

from panicd.host import backlog
from panicd.host.backlog import AT_ONCE, LATEST, Backlog
from tests.parts.background import background
from tests.parts.patience import fail_after

Say = Callable[..., None]


def make() -> tuple[Backlog, Say, list[object]]:
    """A backlog, what says something to it, and what it has written."""
    written: list[object] = []
    waiting = Backlog(lambda _method, event: written.append(event["event"]))

    def say(event: object, method: str = "info", **values: object) -> None:
        with pytest.raises(structlog.DropEvent):
            waiting(None, method, {"event": event, **values})

    return waiting, say, written


@asynccontextmanager
async def running() -> AsyncIterator[tuple[Say, list[object]]]:
    """A backlog that runs: what says something to it, and what it has written."""
    waiting, say, written = make()
    with fail_after(10):
        async with background() as nursery:
            nursery.start_soon(waiting.run)
            await trio.testing.wait_all_tasks_blocked()
            yield say, written


def test_what_is_said_while_nothing_runs_is_written_at_once() -> None:
    _, say, written = make()
    say("one")
    assert written == ["one"]


async def test_entries_are_written_in_order_once_nothing_more_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backlog, "QUIET", 0.3)
    many = list(range(AT_ONCE * 3 + 1))
    async with running() as (say, written):
        for number in many:
            say(number)
            await trio.lowlevel.checkpoint()
        assert written == []
        while len(written) < len(many):
            await trio.testing.wait_all_tasks_blocked(backlog.QUIET)
    assert written == many


async def test_nothing_is_left_at_the_end() -> None:
    async with running() as (say, written):
        for number in range(50):
            say(number)
    say("after")
    assert written == [*range(50), "after"]


@pytest.mark.parametrize("how", [{"method": "error"}, {"exc_info": True}])
async def test_the_urgent_is_written_at_once_after_what_waits(how: dict[str, object]) -> None:
    async with running() as (say, written):
        say("before")
        say("urgent", **how)
        assert written == ["before", "urgent"]


async def test_another_threads_entry_is_written_at_once() -> None:
    async with running() as (say, written):
        say("before")
        other = threading.Thread(target=say, args=["other"])
        other.start()
        other.join()
        assert written == ["before", "other"]


async def test_what_has_waited_long_is_written_though_there_is_no_idle_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr("panicd.host.backlog.time.time", lambda: now)
    async with running() as (say, written):
        say("one")
        now += LATEST + 1
        while not written:  # never idle
            await trio.lowlevel.checkpoint()
    assert written == ["one"]


async def test_no_more_than_so_many_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "LIMIT", 10)
    async with running() as (say, written):
        for number in range(15):
            say(number)
        assert written == [0, 1, 2, 3, 4]
