"""First commands go first: what follows one waits while other domains' are still to be given.

When many domains panic at once, each is to have its first command as soon as may be. What comes
after it, to take note, to log, and to go on with the plan, waits for that, though not for long.
"""

from collections import deque
from collections.abc import Callable
from typing import Final

import trio

from panicd.host.timers import Timers

WAITS_AT_MOST: Final = 1.0  # seconds from the first panic on
SLICE: Final = 0.001  # seconds of work after which what is read has its turn
LOOKS_EVERY: Final = 0.002  # seconds


class Rush:
    """The reactions of all domains, up to their first commands.

    Args:
        timers: of all domains.
    """

    def __init__(self, timers: Timers) -> None:
        self._timers = timers
        self._count = 0
        self._until = 0.0
        self._later: deque[Callable[[], None]] = deque()
        self._is_set = False

    def begin(self) -> None:
        """A first command is to be given."""
        if not self._count:
            self._until = trio.current_time() + WAITS_AT_MOST
        self._count += 1

    def end(self) -> None:
        """It was given, or is not going to be."""
        self._count -= 1

    @property
    def goes_on(self) -> bool:
        """Whether there are first commands to be waited for."""
        return self._count > 0 and trio.current_time() < self._until

    def afterwards(self, call: Callable[[], None]) -> None:
        """Have something called when there are none."""
        self._later.append(call)
        self._set(0.0)

    def _set(self, seconds: float) -> None:
        if not self._is_set:
            self._is_set = True
            self._timers.after(seconds, self._work)

    def _work(self) -> None:
        self._is_set = False
        began = trio.current_time()
        while self._later and not self.goes_on and trio.current_time() - began < SLICE:
            self._later.popleft()()
        if self._later:
            self._set(LOOKS_EVERY if self.goes_on else 0.0)
