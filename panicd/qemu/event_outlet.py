"""A monitor's events, handed over as they are read; until somebody takes them they wait, bounded.

A guest chooses when and how often it panics, some 50,000 times a second if it likes. Panics that
follow each other are kept as one with a count; past ``LIMIT`` entries order is given up, but not
the number of panics, and whoever takes the events is told to ask for the state.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

from panicd.rules.qapi import Event, GuestPanickedEvent

LIMIT: Final = 64  # entries; a session is made in a few milliseconds


@dataclass(frozen=True, slots=True)
class Heard:
    """An event, how many there were of it in a row, and when the first was read.

    Attributes:
        event: the first of them.
        at: when it was read, on trio's clock (``trio.current_time``).
        count: 1 where it stands alone.
    """

    event: Event
    at: float
    count: int = 1


class EventOutlet:
    """Hands over the events of one session.

    Attributes:
        ended: the session has ended.
        lost: events were given up before they could be handed over; ``lost_panics`` of them were
            GUEST_PANICKED.
    """

    __slots__ = ("_entries", "_take", "_tell_end", "ended", "lost", "lost_panics")

    def __init__(self) -> None:
        self._entries: deque[Heard] = deque()
        self._take: Callable[[Heard], None] | None = None
        self._tell_end: Callable[[], None] = _nobody
        self.ended = False
        self.lost = False
        self.lost_panics = 0

    def put(self, event: Event) -> None:
        """Hand over an event, or keep it. Never waits, never keeps more than ``LIMIT``."""
        heard = Heard(event, trio.current_time())
        if self._take is not None:
            self._take(heard)
            return
        last = self._entries[-1] if self._entries else None
        if not self.lost and last is not None and _same_panic(last.event, event):
            self._entries[-1] = Heard(last.event, last.at, last.count + 1)
        elif self.lost or len(self._entries) >= LIMIT:
            self.lost = True
            self.lost_panics += isinstance(event, GuestPanickedEvent)
        else:
            self._entries.append(heard)

    def close(self) -> None:
        """Say that no event will follow: the session has ended."""
        if not self.ended:
            self.ended = True
            self._tell_end()

    def take_kept(self) -> list[Heard]:
        """Return what was kept, and keep it no longer."""
        kept = list(self._entries)
        self._entries.clear()
        return kept

    def hand_over(self, take: Callable[[Heard], None], tell_end: Callable[[], None]) -> None:
        """Hand over what was kept, and all that follows at once, as it is read.

        Args:
            take: is given each event.
            tell_end: is called when none will follow.
        """
        while self._entries:
            take(self._entries.popleft())
        self._take, self._tell_end = take, tell_end
        if self.ended:
            tell_end()

    def let_go(self) -> None:
        """Hand over nothing more."""
        self._take, self._tell_end = _nowhere, _nobody


def _nobody() -> None:
    """Tell nobody."""


def _nowhere(_heard: Heard) -> None:
    """Take nothing."""


def _same_panic(one: Event, other: Event) -> bool:
    return (
        isinstance(one, GuestPanickedEvent)
        and isinstance(other, GuestPanickedEvent)
        and one.action is other.action
    )
