"""Hands over a monitor's events as they are read; keeps a few until somebody takes them.

A guest can panic as often as it likes, some 50,000 times a second. Consecutive panics are kept as
one entry with a count. Past ``LIMIT`` entries the outlet drops events but counts the panics among
them, and tells the reader to ask for the state.
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
    """An event that came once or several times in a row.

    Attributes:
        event: the first of them.
        at: when the first was read, on trio's clock (``trio.current_time``).
        count: how many came in a row.
    """

    event: Event
    at: float
    count: int = 1


class EventOutlet:
    """Hands over the events of one session.

    Attributes:
        ended: the session has ended.
        lost: events were dropped before they could be handed over.
        lost_panics: how many of these were GUEST_PANICKED.
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
        """Hand over an event, or keep it. Never waits; keeps at most ``LIMIT`` entries."""
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
        """Return the kept events, and forget them."""
        kept = list(self._entries)
        self._entries.clear()
        return kept

    def hand_over(self, take: Callable[[Heard], None], tell_end: Callable[[], None]) -> None:
        """Hand over the kept events, and each later event as it is read.

        Args:
            take: receives each event.
            tell_end: called when no event will follow.
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
