"""How much of a processor the reading of one monitor may take.

All monitors are read by one thread. What a guest or its QEMU makes of it, by panicking tens of
thousands of times a second or by talking nonsense, is taken from that monitor only: it is read a
slice at a time, and past its share of the time it has to wait. What is not read stays in the
socket, and behind that in QEMU.
"""

from typing import Final

SLICE: Final = 0.001  # seconds of work after which the others have their turn
BURST: Final = 0.02  # seconds of work that are free: 500 messages and more
HURRIED: Final = 0.5  # of a processor, where an answer is waited for
MOST: Final = BURST
"""Seconds that a message may cost: what took longer was spent waiting for a processor, which is not
its sender's fault. A second of that once kept a panicked guest's monitor unread for two."""
PER_MESSAGE: Final = 10e-6  # seconds that a message costs before and after it is looked at


class Pace:
    """Keeps the account of one monitor.

    Attributes:
        share: of one processor that it may take, above 0; 1 for all of it.
        hurried: it may take ``HURRIED`` for now: its answers are waited for.
    """

    __slots__ = ("_at", "_owed", "_since_turn", "hurried", "share")

    def __init__(self, share: float = 1.0) -> None:
        self.share = share
        self.hurried = False
        self._owed = 0.0  # seconds of work that its share has not yet paid for
        self._since_turn = 0.0
        self._at = 0.0

    def pause(self, began: float, now: float) -> float | None:
        """Account for a message; return the seconds to wait before the next is read.

        Args:
            began: when it was begun with, in seconds.
            now: when it was done with, on the same clock.

        Returns:
            None: read on at once; 0: after the others' turn.
        """
        took = min(now - began, MOST) + PER_MESSAGE
        share = max(self.share, HURRIED) if self.hurried else self.share
        self._owed = max(0.0, self._owed - (now - self._at) * share) + took
        self._since_turn += took
        self._at = now
        if self._since_turn < SLICE:
            return None
        self._since_turn = 0.0
        if self._owed <= BURST or share >= 1.0:
            return 0.0
        return (self._owed - BURST) / share
