"""asyncio's callbacks are called in their order, many in a turn, and others have their turn."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from panicd.qemu.callbacks import AT_ONCE, Callbacks


class Loop:
    """Calls what it was given, one thing in a turn."""

    def __init__(self) -> None:
        self.later: deque[Callable[[], None]] = deque()
        self.loop = asyncio.new_event_loop()
        self.callbacks = Callbacks(self._handle, self.later.append)

    def _handle(self, call: Callable[..., object], of: Any, context: Any) -> asyncio.Handle:
        return asyncio.Handle(call, of, self.loop, context)

    def turn(self) -> None:
        self.later.popleft()()


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.loop.close()


def test_all_that_are_ready_are_called_in_one_turn_and_in_their_order(loop: Loop) -> None:
    called: list[int] = []

    def first() -> None:
        called.append(0)
        loop.callbacks.call_soon(called.append, 3)

    loop.callbacks.call_soon(first)
    loop.callbacks.call_soon(called.append, 1)
    loop.callbacks.call_soon(called.append, 2)
    loop.turn()
    assert called == [0, 1, 2, 3]
    assert not loop.later


def test_the_loop_has_its_turn_among_many(loop: Loop) -> None:
    called: list[int] = []
    for number in range(AT_ONCE + 1):
        loop.callbacks.call_soon(called.append, number)
    loop.turn()
    assert called == list(range(AT_ONCE))
    loop.turn()
    assert called == list(range(AT_ONCE + 1))
    assert not loop.later


def test_a_cancelled_one_is_not_called(loop: Loop) -> None:
    called: list[object] = []
    loop.loop.set_exception_handler(lambda *problem: called.append(problem))
    handle = loop.callbacks.call_soon(called.append, 1)
    assert isinstance(handle, asyncio.Handle)
    handle.cancel()
    loop.turn()
    assert not called


def test_one_that_ends_the_turn_keeps_none_from_being_called(loop: Loop) -> None:
    called: list[int] = []

    def interrupt() -> None:
        raise KeyboardInterrupt

    loop.callbacks.call_soon(interrupt)
    loop.callbacks.call_soon(called.append, 1)
    with pytest.raises(KeyboardInterrupt):
        loop.turn()
    loop.turn()
    assert called == [1]
