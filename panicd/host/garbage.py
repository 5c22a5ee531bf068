"""Has Python's cycle collector look through all objects while nothing happens.

A look at all objects of 2,000 domains takes 0.1 to 1 s, in which nobody gets a response. Python
takes one after many new objects, so most likely in a storm. So panicd takes it beforehand, and then
sets aside what there is (``gc.freeze``). A look that Python takes by itself is then at new objects
only.

While many sessions begin at once, Python takes no look. Nearly all of their objects stay, and
Python would look at each three times: a sixth of the time in which they begin. They are set aside
when all have begun, and looked through with all others.
"""

import gc
import time
from collections.abc import Callable
from typing import Final

import trio

COLLECT_AFTER: Final = (700, 10, 43)
"""``gc.set_threshold``: new objects, and looks at younger generations, before a look. The first as
by default, because what a hostile monitor sent is among the youngest. The last has Python look at
everything after 300,000 new objects instead of 70,000."""
NEW: Final = 4  # looks at the second generation, each after 7,000 new objects
QUIET: Final = 5.0  # seconds without a reaction before a look
RESTS: Final = 1000  # times as long as the last look took, before the next
SPARED: Final = 4096
"""Sessions that may begin without a look, until all is looked through. So what a hostile monitor
leaves is bounded."""


class Spare:
    """The sessions that begin without a look of Python's.

    Attributes:
        left: how many more may, until all is looked through.
    """

    def __init__(self) -> None:
        self.left = SPARED
        self._goes_on = False

    def begin(self, sessions: int) -> None:
        """Have Python take no look while so many more sessions begin, as far as they may."""
        self.left -= sessions
        if self.left < 0:
            self.end()
        elif not self._goes_on and gc.isenabled():
            self._goes_on = True
            gc.disable()

    def end(self) -> None:
        """Set aside what the sessions have made, and have Python look again."""
        if self._goes_on:
            self._goes_on = False
            gc.freeze()
            gc.enable()


spare: Final = Spare()
"""Python has one collector."""


async def look_through(quiet_for: Callable[[], float]) -> None:
    """Look through all objects when there are new ones and nothing happens, for ever.

    Args:
        quiet_for: returns for how many seconds panicd has not reacted to a panic.
    """
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
    while True:
        await trio.sleep(QUIET)
        _, _, looks = gc.get_count()
        if looks >= NEW and quiet_for() >= QUIET:
            began = time.perf_counter()
            spare.end()
            spare.left = SPARED
            gc.unfreeze()  # an ended session leaves cycles, and was set aside while it lasted
            gc.collect()
            gc.freeze()
            await trio.sleep(RESTS * (time.perf_counter() - began))
