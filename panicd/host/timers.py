"""One task keeps the time limits of all domains. Setting one costs a push on a heap."""

import heapq
import math
from collections.abc import Callable
from itertools import count

import trio


class Timer:
    """One time limit.

    Attributes:
        due: when the time limit ends, on trio's clock.
        call: called then, once; None: the timer was cancelled or has ended.
    """

    __slots__ = ("call", "due")

    def __init__(self, due: float, call: Callable[[], None]) -> None:
        self.due = due
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        """Have nothing called."""
        self.call = None


class Timers:
    """The time limits that are set."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._numbers = count()
        self._sleeps_until = -math.inf
        self._earlier = trio.Event()

    def after(self, seconds: float, call: Callable[[], None]) -> Timer:
        """Call a function after some seconds, in the event loop's thread."""
        timer = Timer(trio.current_time() + seconds, call)
        heapq.heappush(self._heap, (timer.due, next(self._numbers), timer))
        if timer.due < self._sleeps_until:
            self._earlier.set()
        return timer

    async def run(self) -> None:
        """Call the functions of due timers, for ever."""
        while True:
            now = trio.current_time()
            while self._heap and (self._heap[0][0] <= now or self._heap[0][2].call is None):
                _, _, timer = heapq.heappop(self._heap)
                call, timer.call = timer.call, None
                if call is not None:
                    call()
            self._earlier = trio.Event()
            self._sleeps_until = self._heap[0][0] if self._heap else math.inf
            with trio.move_on_at(self._sleeps_until):
                await self._earlier.wait()


class Alarm:
    """A time limit that replaces the former one: putting it off often takes only one timer.

    Args:
        timers: keep its timer.
    """

    def __init__(self, timers: Timers) -> None:
        self._timers = timers
        self._call: Callable[[], None] | None = None
        self._timer: Timer | None = None
        self._due = math.inf

    def set(self, seconds: float, call: Callable[[], None]) -> None:
        """Call a function after some seconds, in place of the former function."""
        self._due, self._call = trio.current_time() + seconds, call
        if self._timer is None or self._timer.call is None or self._timer.due > self._due:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._timers.after(seconds, self._is_due)

    def stop(self) -> None:
        """Have nothing called."""
        self._call = None
        if self._timer is not None:
            self._timer.cancel()

    def _is_due(self) -> None:
        self._timer = None
        left = self._due - trio.current_time()
        if left > 0:
            self._timer = self._timers.after(left, self._is_due)
        elif self._call is not None:
            call, self._call = self._call, None
            call()
