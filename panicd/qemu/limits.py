"""Time limits of what QEMUs and their processes are asked while they connect.

A scope of trio's for each limit takes 40 µs, and a domain has three limits before it is looked
after. So one task keeps them all.
"""

from collections.abc import Callable
from typing import Final

import trio

from panicd.host.timers import Timer, Timers

_TIMERS: Final = trio.lowlevel.RunVar[Timers]("the time limits of all monitors")


def after(seconds: float, call: Callable[[], None]) -> Timer:
    """Call a function after some seconds, unless the timer is cancelled before.

    The function must not raise an exception.
    """
    try:
        timers = _TIMERS.get()
    except LookupError:
        timers = Timers()
        _TIMERS.set(timers)
        trio.lowlevel.spawn_system_task(timers.run)
    return timers.after(seconds, call)
