"""A monitor's events between the reader and the domain's task: in order, coalesced, bounded.

A guest chooses when and how often it panics, some 50,000 times a second if it likes. Panics that
follow each other are kept as one with a count; past ``LIMIT`` entries order is given up, but not
the number of panics, and the reader of the buffer is told to ask for the state.
"""

from collections import deque
from dataclasses import dataclass
from typing import Final

import trio

from panicd.rules.qapi import Event, GuestPanickedEvent

LIMIT: Final = 64  # entries; a plan's whole course makes fewer than ten


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


@dataclass(frozen=True, slots=True)
class Overflow:
    """Events were given up: ``panics`` of them GUEST_PANICKED. The state must be asked for."""

    panics: int


class EventBuffer:
    """The events of one session, until the session ends.

    Attributes:
        coalesced: events that were counted instead of kept, since the beginning.
    """

    __slots__ = ("_closed", "_entries", "_lost", "_lost_panics", "_nudged", "_waker", "coalesced")

    def __init__(self) -> None:
        self._entries: deque[Heard] = deque()
        self._lost = False
        self._lost_panics = 0
        self._closed = False
        self._nudged = False
        self._waker: trio.Event | None = None
        self.coalesced = 0

    def put(self, event: Event) -> None:
        """Add an event. Never waits, never grows the buffer past ``LIMIT``."""
        is_panic = isinstance(event, GuestPanickedEvent)
        last = self._entries[-1] if self._entries else None
        if is_panic and self._lost:
            self._lost_panics += 1
            self.coalesced += 1
        elif is_panic and last and _same_panic(last.event, event):
            self._entries[-1] = Heard(last.event, last.at, last.count + 1)
            self.coalesced += 1
        elif self._lost or len(self._entries) >= LIMIT:
            self._lost = True
            self._lost_panics += is_panic
            self.coalesced += 1
        else:
            self._entries.append(Heard(event, trio.current_time()))
        self._wake()

    def close(self) -> None:
        """Say that no event will follow: the session has ended."""
        self._closed = True
        self._wake()

    def nudge(self) -> None:
        """Have ``wait`` return once without an entry: its caller has something else to do."""
        self._nudged = True
        self._wake()

    def pop(self) -> Heard | Overflow | None:
        """Return the next entry; None when there is none."""
        self._nudged = False
        if self._entries:
            return self._entries.popleft()
        if self._lost:
            panics, self._lost, self._lost_panics = self._lost_panics, False, 0
            return Overflow(panics)
        return None

    @property
    def ended(self) -> bool:
        """Whether the session has ended and every entry was taken."""
        return self._closed and not self._entries and not self._lost

    async def wait(self) -> None:
        """Return when there is an entry to take, none will come, or somebody nudges."""
        if self._entries or self._lost or self._closed or self._nudged:
            await trio.lowlevel.checkpoint()
            return
        if self._waker is None:
            self._waker = trio.Event()
        await self._waker.wait()

    def _wake(self) -> None:
        if self._waker is not None:
            self._waker.set()
            self._waker = None


def _same_panic(one: Event, other: Event) -> bool:
    return (
        isinstance(one, GuestPanickedEvent)
        and isinstance(other, GuestPanickedEvent)
        and one.action is other.action
    )
