"""Lets a reaction to a panic go first. Work that can wait does so meanwhile.

All of panicd's Python runs in one interpreter, one thread at a time, and a dump wants as many
processors as there are. A scrape, ``status`` or a dump consists of many small parts; before each
part its thread gives way. A reaction takes a few milliseconds, so nobody loses much. Work that
waits takes a few times as long, a dump in a storm up to six times: see the limits.
"""

import threading
import time
from collections.abc import Iterable, Iterator
from typing import Final, TypeVar

import trio

PASSED_WITHIN: Final = 0.05  # seconds after a panic during which its reaction may go first
WAITS_AT_MOST: Final = 0.005  # seconds that another thread waits before one of its parts
GOES_ON: Final = 0.001  # seconds that a thread works before it waits again
LOOKS_EVERY: Final = 8  # items

T = TypeVar("T")


class Priority:
    """Decides which thread goes first.

    ``begin``, ``end`` and ``give_way_async`` are for the event loop's thread, the others for any
    other.
    """

    def __init__(self) -> None:
        self._reactions = 0
        self._until = 0.0  # by the clock that is never set
        self._quiet_since = time.monotonic()
        self._free = threading.Event()
        self._free.set()
        self._turn = _Turn()
        self._freed = trio.Event()  # the same for the event loop's tasks

    def begin(self) -> None:
        """Begin to react to a panic: the event loop goes first, for ``PASSED_WITHIN`` at most."""
        if not self._reactions:
            self._free.clear()
            self._freed = trio.Event()
        self._reactions += 1
        self._until = time.monotonic() + PASSED_WITHIN

    def end(self) -> None:
        """End a reaction that has begun."""
        self._reactions -= 1
        if not self._reactions:
            self._quiet_since = time.monotonic()
            self._free.set()
            self._freed.set()

    def quiet_for(self) -> float:
        """Return the seconds since the last reaction; 0: one is under way."""
        return 0.0 if self._reactions else time.monotonic() - self._quiet_since

    def give_way(self) -> None:
        """Wait while another thread reacts to a panic, if need be. Blocking."""
        if not self._free.is_set() and (limit := self._limit()) > 0:
            self._free.wait(limit)
            self._works()

    def in_turn(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items, and give way before every ``LOOKS_EVERY``-th. Blocking."""
        for number, item in enumerate(items):
            if number % LOOKS_EVERY == 0:
                self.give_way()
            yield item

    async def give_way_async(self) -> None:
        """Let other tasks run, and wait as ``give_way`` does."""
        await trio.lowlevel.checkpoint()
        if self._reactions and (limit := self._limit()) > 0:
            with trio.move_on_after(limit):
                await self._freed.wait()
            self._works()

    def _limit(self) -> float:
        """Return how many seconds this thread has to wait; 0 or less: none."""
        now = time.monotonic()
        if now < self._turn.goes_on_until:
            return 0.0
        return min(self._until - now, WAITS_AT_MOST)

    def _works(self) -> None:
        self._turn.goes_on_until = time.monotonic() + GOES_ON


class _Turn(threading.local):
    """For each thread: until when it need not wait again."""

    goes_on_until = 0.0
