"""Joins panics that follow each other directly: a flooding guest costs only its share."""

from collections.abc import Callable
from functools import partial
from typing import Final

from panicd.host.metrics import Metrics
from panicd.host.timers import Timers
from panicd.rules.machine.inputs import Heard
from panicd.rules.qapi import Event, GuestPanickedEvent

GATHER: Final = 0.02  # seconds of gathering panics


class Gathering:
    """The panics of one session that the machine has not got yet.

    Args:
        timers: of all domains.
        metrics: count the gathered panics.
    """

    def __init__(self, timers: Timers, metrics: Metrics) -> None:
        self._timers = timers
        self._metrics = metrics
        self._last: Event | None = None
        self._more = 0

    def takes(self, heard: Heard, tell: Callable[[Heard], None]) -> bool:
        """Take a panic that directly follows one with the same action.

        Args:
            heard: the event.
            tell: gets the gathered panics as one, in a moment.

        Returns:
            True if the panic was taken.
        """
        last, event = self._last, heard.event
        if not (
            isinstance(last, GuestPanickedEvent)
            and isinstance(event, GuestPanickedEvent)
            and last.action is event.action
        ):
            return False
        if not self._more:
            self._timers.after(GATHER, partial(self.tell_more, tell))
        self._more += heard.count
        self._metrics.events_coalesced.inc(heard.count)
        return True

    def heard(self, event: Event) -> None:
        """Remember an event that the machine got."""
        self._last = event

    def tell_more(self, tell: Callable[[Heard], None]) -> None:
        """Pass on the gathered panics, before any other input."""
        if self._more:
            last, count, self._more = self._last, self._more, 0
            assert last is not None
            tell(Heard(last, count))
