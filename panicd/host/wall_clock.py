"""Tells the time of day, and reports when it was set.

Holds, budgets and storms use the time of day, because they outlive the daemon. When it is set (by
an administrator, by NTP after a boot with a bad clock), two hours of hold remain two hours: the
keepers of such times learn the jump before anybody reads the times. The journal keeps its times
unchanged: they count again from the daemon's next start on.

Source: clock_gettime(2): CLOCK_BOOTTIME is never set, runs on while the host sleeps,
and is slewed as CLOCK_REALTIME is.
"""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

SET: Final = 2.0  # seconds; the two clocks drift apart by so much only when the time was set


def _wall() -> float:
    return time.time()


def _steady() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class WallClock:
    """Tells the seconds since the epoch, in any thread.

    Args:
        told: functions to call, in the thread that made this object, with the seconds by which the
            clock was set; above 0: forward.
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
        """Return the seconds since the epoch; a jump is reported to ``told`` first."""
        now = self._wall()
        jump = now - self._steady() - self._ahead
        if abs(jump) >= SET and threading.get_ident() == self._thread:
            self._ahead += jump
            for tell in self._told:
                tell(jump)
        return now
