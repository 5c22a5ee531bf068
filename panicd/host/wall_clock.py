"""The time of day, and a word when it was set.

Holds, budgets and storms are counted in the time of day, for they outlive the daemon. When it is
set (by an administrator, by NTP after a boot with a bad clock) two hours of hold are two hours
still: whoever keeps such times is told by how much, before anybody reads them. What the journal has
of them is not changed: it counts again from the next start of the daemon on.

Source: clock_gettime(2): CLOCK_BOOTTIME is never set, runs on while the host sleeps,
and is slewed as CLOCK_REALTIME is.
"""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

SET: Final = 2.0  # seconds by which the two differ only when the clock was set


def _wall() -> float:
    return time.time()


def _steady() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class WallClock:
    """Tells the seconds since the epoch, in any thread.

    Args:
        told: called, in the thread that has made this, with the seconds by which the clock was set,
            forward above 0.
        wall: the seconds since the epoch.
        steady: seconds of a clock that is never set.
    """

    def __init__(
        self,
        told: Sequence[Callable[[float], object]],
        wall: Callable[[], float] = _wall,
        steady: Callable[[], float] = _steady,
    ) -> None:
        self._told = told
        self._wall = wall
        self._steady = steady
        self._ahead = wall() - steady()
        self._thread = threading.get_ident()

    def __call__(self) -> float:
        """Return the seconds since the epoch; whoever is to be told of a jump knows it by then."""
        now = self._wall()
        jump = now - self._steady() - self._ahead
        if abs(jump) >= SET and threading.get_ident() == self._thread:
            self._ahead += jump
            for tell in self._told:
                tell(jump)
        return now
