"""Panics that follow each other directly, told of as one: a guest that floods costs its share."""

from collections.abc import Callable
from functools import partial
from typing import Final

from panicd.host.metrics import Metrics
from panicd.host.timers import Timers
from panicd.rules.machine.inputs import Heard
from panicd.rules.qapi import Event, GuestPanickedEvent

GATHER: Final = 0.02  # seconds in which they are gathered


class Gathering:
    """The panics of one session that are not yet told of.

    Args:
        timers: of all domains.
        metrics: which count them.
    """

    def __init__(self, timers: Timers, metrics: Metrics) -> None:
        self._timers = timers
        self._metrics = metrics
        self._last: Event | None = None
        self._more = 0

    def takes(self, heard: Heard, tell: Callable[[Heard], None]) -> bool:
        """Take a panic that says no more than the one before it, after which nothing was heard.

        Args:
            heard: it.
            tell: is given those that were gathered as one, in a moment.

        Returns:
            Whether it is such a one.
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
        """Take note of an event that was told of."""
        self._last = event

    def tell_more(self, tell: Callable[[Heard], None]) -> None:
        """Tell of those that were gathered; whatever else comes is told of after that."""
        if self._more:
            last, count, self._more = self._last, self._more, 0
            assert last is not None
            tell(Heard(last, count))
