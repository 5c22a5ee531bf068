"""Limits how much of a processor the reading of one monitor may take.

One thread reads all monitors. A guest may panic tens of thousands of times a second, and its QEMU
may talk nonsense; that must delay only its own monitor. So each monitor is read a slice at a time,
and waits once it has used up its share. Unread messages stay in the socket, and behind it in QEMU.
"""

from typing import Final

SLICE: Final = 0.001  # seconds of work after which the other monitors have their turn
BURST: Final = 0.02  # seconds of work that are free: 500 messages and more
HURRIED: Final = 0.5  # of a processor, while an answer is awaited
MOST: Final = BURST
"""Most seconds that are charged at once. Time beyond that went into waiting for a processor, which
is not the sender's fault. One such second once kept a panicked guest's monitor unread for two."""
PER_MESSAGE: Final = 10e-6  # seconds that a message costs before and after it is looked at


class Pace:
    """Accounts for the processor time of one monitor.

    Attributes:
        share: the part of one processor that the monitor may take, above 0; 1 for all of it.
        hurried: the monitor may take ``HURRIED`` for now, because an answer is awaited.
    """

    __slots__ = ("_at", "_owed", "_since_turn", "hurried", "share")

    def __init__(self, share: float = 1.0) -> None:
        self.share = share
        self.hurried = False
        self._owed = 0.0  # seconds of work that its share has not yet paid for
        self._since_turn = 0.0
        self._at = 0.0

    def pause(self, began: float, now: float, messages: int = 1) -> float | None:
        """Account for messages; return the seconds to wait before the next is read.

        Args:
            began: when work on them began, in seconds.
            now: when the work ended, on the same clock.
            messages: how many; 0: only a part of one was received.

        Returns:
            None: read on at once; 0: read on after the other monitors' turn.
        """
        took = min(now - began, MOST) + messages * PER_MESSAGE
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
