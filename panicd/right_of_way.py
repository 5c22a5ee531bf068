"""Lets a reaction to a panic go first: what can wait does so while one goes on.

All of panicd's Python runs in one interpreter, a thread at a time, and a dump wants as many
processors as there are. A scrape, ``status`` or a dump is made of many small parts; before each
of them whoever makes it offers the way. A reaction takes a few milliseconds, so nobody loses much.
A storm or a plan that takes its time holds nobody up for long: see the two limits.
"""

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

import trio

PASSED_WITHIN: Final = 0.05  # seconds from a panic on that its reaction may go first
WAITS_AT_MOST: Final = 0.01  # seconds that others wait before one of their parts

T = TypeVar("T")


class RightOfWay:
    """Who goes first.

    ``go_first`` and ``give_way_async`` are for the event loop's thread, the others for any other.
    """

    def __init__(self) -> None:
        self._reactions = 0
        self._until = 0.0  # by the clock that is never set
        self._free = threading.Event()
        self._free.set()
        self._freed = trio.Event()  # the same for the event loop's tasks

    @contextmanager
    def go_first(self) -> Iterator[None]:
        """Have the way while a panic is reacted to, for ``PASSED_WITHIN`` at most."""
        if not self._reactions:
            self._free.clear()
            self._freed = trio.Event()
        self._reactions += 1
        self._until = time.monotonic() + PASSED_WITHIN
        try:
            yield
        finally:
            self._reactions -= 1
            if not self._reactions:
                self._free.set()
                self._freed.set()

    def give_way(self) -> None:
        """Wait while a panic is reacted to, for ``WAITS_AT_MOST``. Blocking."""
        if not self._free.is_set():
            left = self._until - time.monotonic()
            if left > 0:
                self._free.wait(min(left, WAITS_AT_MOST))

    def in_turn(self, items: Iterable[T]) -> Iterator[T]:
        """Yield what is given, and give way before each. Blocking."""
        for item in items:
            self.give_way()
            yield item

    async def give_way_async(self) -> None:
        """Let other tasks run, and wait as ``give_way`` does."""
        await trio.lowlevel.checkpoint()
        left = self._until - time.monotonic()
        if self._reactions and left > 0:
            with trio.move_on_after(min(left, WAITS_AT_MOST)):
                await self._freed.wait()
