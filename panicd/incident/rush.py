"""First commands go first: later work on a domain waits for other domains' first commands.

When many domains panic at once, each gets its first command as soon as possible. The later work,
such as notes, log lines and the rest of the plan, waits for that, though not for long.
"""

from collections import deque
from collections.abc import Callable
from typing import Final

import trio
from trio.abc import Clock

from panicd.host.timers import Timers

COMMITTED_AFTER: Final = 1.0  # seconds from the first panic on; until then intents may wait
WAITS_AT_MOST: Final = 3.0  # seconds from the first panic on; until then all else may wait
CARRIED_OUT_WITHIN: Final = 0.003
"""Seconds for which the processors are left to those who carry out a first command. Three threads
of libvirtd and two of QEMU wake up for a reset, one after the other."""
PAUSES_FOR_EACH: Final = 5e-5  # seconds, of each panic: so many more may be on their way
PAUSES_AT_MOST: Final = 0.05  # seconds
SLICE: Final = 0.001  # seconds of work before the event loop reads again
LOOKS_EVERY: Final = 0.002  # seconds
ATTACHED_WITHIN: Final = 0.1  # seconds; of many domains that are attached, the next one follows


class Rush:
    """The reactions of all domains, up to their first commands.

    Args:
        timers: of all domains.
    """

    def __init__(self, timers: Timers) -> None:
        self._timers = timers
        self._count = 0
        self._began = 0.0
        self._latest = -CARRIED_OUT_WITHIN  # when a first command became due
        self._number = 0  # of first commands since it began
        self._clock: Clock | None = None
        self._commits: deque[Callable[[], None]] = deque()
        self._later: deque[Callable[[], None]] = deque()
        self._attached: list[Callable[[], None]] = []
        self._attached_at = -ATTACHED_WITHIN  # the latest domain
        self._is_set = False

    def begin(self) -> None:
        """Count a first command that is due."""
        self._clock = trio.lowlevel.current_clock()
        now = self._clock.current_time()
        if not self._count and now >= self._latest + self._pause:
            self._began, self._number = now, 0
        self._latest = now
        self._number += 1
        self._count += 1

    def end(self) -> None:
        """Discount a first command: it was given, or will not be."""
        self._count -= 1

    @property
    def goes_on(self) -> bool:
        """True while later work must wait for first commands. Any thread may ask."""
        return self._lasts(WAITS_AT_MOST)

    def _lasts(self, seconds: float) -> bool:
        clock = self._clock
        if clock is None or not (self._count or self._number > 1):
            return False
        now = clock.current_time()
        is_due = self._count > 0 or now < self._latest + self._pause  # more may be unread
        return is_due and now < self._began + seconds

    @property
    def _pause(self) -> float:
        """Seconds without a panic after which no more are to be expected."""
        return min(CARRIED_OUT_WITHIN + self._number * PAUSES_FOR_EACH, PAUSES_AT_MOST)

    def afterwards(self, call: Callable[[], None]) -> None:
        """Have something called when no first command is due."""
        self._later.append(call)
        self._set(CARRIED_OUT_WITHIN)

    def commit(self, call: Callable[[], None]) -> None:
        """Have an intent committed when no first command is due, but within a second or so."""
        self._commits.append(call)
        self._set(CARRIED_OUT_WITHIN)

    def after_attaching(self, call: Callable[[], None]) -> None:
        """Have something called for an attached domain, when no others are being attached.

        The first domain does not wait: it may be the only one.
        """
        before, self._attached_at = self._attached_at, trio.current_time()
        if self._attached_at >= before + ATTACHED_WITHIN:
            self.afterwards(call)
            return
        if not self._attached:
            self._timers.after(ATTACHED_WITHIN, self._see_all_attached)
        self._attached.append(call)

    def _see_all_attached(self) -> None:
        rest = self._attached_at + ATTACHED_WITHIN - trio.current_time()
        if rest > 0:
            self._timers.after(rest, self._see_all_attached)
            return
        self._later += self._attached
        self._attached.clear()
        self._set(0.0)

    def _set(self, seconds: float) -> None:
        if not self._is_set:
            self._is_set = True
            self._timers.after(seconds, self._work)

    def _work(self) -> None:
        self._is_set = False
        began = trio.current_time()
        while self._commits and not self._lasts(COMMITTED_AFTER):
            self._commits.popleft()()  # each takes no time: the journal's thread does the work
        while self._later and not self.goes_on and trio.current_time() - began < SLICE:
            self._later.popleft()()
        if self._commits or self._later:
            self._set(LOOKS_EVERY if self.goes_on else 0.0)


class FirstCommand:
    """A first command that is due, until it is given.

    Attributes:
        is_given: it was given, or will not be.
    """

    def __init__(self, rush: Rush) -> None:
        self.is_given = False
        self._rush = rush
        rush.begin()

    def put_off(self, call: Callable[[], None]) -> bool:
        """Have something called after others' first commands; return False if it need not wait."""
        if not (self.is_given and self._rush.goes_on):
            return False
        self._rush.afterwards(call)
        return True

    def given(self) -> None:
        """Note that it was given, or will not be."""
        if not self.is_given:
            self.is_given = True
            self._rush.end()
