"""Reading the command lines of many processes, some of which let nobody read them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest
import trio

from panicd.qemu import process_arguments, threads
from panicd.qemu.process_arguments import ArgumentsHangError, read_arguments
from panicd.qemu.threads import NoThreadError
from tests.parts.patience import fail_after, patience
from tests.qemu.process.programs import LIMIT

NOBODY_S = 2**30
"""A process number that the kernel gives to nobody."""


@pytest.fixture
def hung(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[int, threading.Event]]:
    """Those of these processes hang until their events are set; others have their number."""
    events: dict[int, threading.Event] = {}

    def read(pid: int, _name: str, _limit: int) -> bytes | None:
        if pid in events:
            events[pid].wait()
        return b"%d\0" % pid

    monkeypatch.setattr(process_arguments, "read_of", read)
    monkeypatch.setattr(process_arguments, "READ_WITHIN", patience(0.6))
    monkeypatch.setattr(process_arguments, "uids_of", lambda pid: {pid // 1000})
    yield events
    for event in events.values():
        event.set()


async def read_many(pids: list[int]) -> dict[int, bytes | None]:
    """Read the command lines of many at once; leave out those that hang."""
    read: dict[int, bytes | None] = {}

    async def one(pid: int) -> None:
        try:
            read[pid] = await read_arguments(pid)
        except ArgumentsHangError:
            return

    with fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            for pid in pids:
                nursery.start_soon(one, pid)
    return read


async def test_this_process_s_is_read() -> None:
    argv = await read_arguments(os.getpid())
    assert argv is not None
    assert b"python" in argv


async def test_who_is_not_there_has_none() -> None:
    assert await read_arguments(NOBODY_S) is None


async def test_one_thread_reads_for_all(
    hung: dict[int, threading.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not hung
    monkeypatch.setattr(process_arguments, "TAKEN_OVER_AFTER", 1000)
    monkeypatch.setattr(process_arguments, "READ_WITHIN", 1000)
    before = threading.active_count()
    assert len(await read_many(list(range(1000, 1100)))) == 100
    assert threading.active_count() <= before + 1


async def test_the_event_loop_stands_aside_while_they_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process_arguments, "STANDS_ASIDE", LIMIT)
    begun, turned, seen = threading.Event(), threading.Event(), []

    def read(pid: int, *_: object) -> bytes:
        begun.set()
        seen.append(turned.wait(patience(0.2)))
        return str(pid).encode()

    class Turns(trio.abc.Instrument):
        def after_task_step(self, task: trio.lowlevel.Task) -> None:  # noqa: ARG002 - trio's
            if begun.is_set() and len(seen) < 2:
                turned.set()

    monkeypatch.setattr(process_arguments, "read_of", read)
    monkeypatch.setattr(process_arguments, "uids_of", lambda _: {0})
    trio.lowlevel.add_instrument(Turns())
    assert len(await read_many([1000, 1001])) == 2
    assert seen == [False, False]


async def test_another_thread_takes_over_from_one_that_hangs(
    hung: dict[int, threading.Event],
) -> None:
    hung.update({1000: threading.Event(), 1001: threading.Event()})
    pids = list(range(1000, 1010))
    assert sorted(await read_many(pids)) == pids[2:]
    for event in hung.values():
        event.set()
    with fail_after(LIMIT):
        while sorted(await read_many(pids)) != pids:
            pass


async def test_one_user_s_processes_keep_nobody_else_s_from_being_read(
    hung: dict[int, threading.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_arguments, "READERS", 2)
    hung.update({pid: threading.Event() for pid in range(1000, 1005)})
    assert await read_many([*hung, 2000]) == {2000: b"2000\0"}


async def test_who_hangs_is_not_asked_again_and_the_next_is_read_at_once(
    hung: dict[int, threading.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    hung[1000] = threading.Event()
    assert await read_many([1000]) == {}
    monkeypatch.setattr(process_arguments, "TAKEN_OVER_AFTER", 1000)
    monkeypatch.setattr(process_arguments, "READ_WITHIN", 1000)
    assert await read_many([1000, 1001]) == {1001: b"1001\0"}


async def test_a_bug_in_the_reading_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_arguments, "read_of", lambda *_: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        await read_arguments(os.getpid())


async def test_without_a_thread_none_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object) -> None:
        raise RuntimeError(threads.NONE_LEFT)

    with monkeypatch.context() as patched:
        patched.setattr(trio.lowlevel, "start_thread_soon", start)
        with pytest.raises(NoThreadError):
            await read_arguments(os.getpid())
    assert await read_arguments(os.getpid())
