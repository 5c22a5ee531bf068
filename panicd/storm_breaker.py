"""Watches for many domains panicking at once, and limits what is done about each meanwhile."""

from collections.abc import Callable

import trio

from panicd.host.logs import get_logger
from panicd.rules.settings import Storm, StormAction
from panicd.rules.storm import NO_STORM, StormOutlook, is_storm, storm_outlook


class StormBreaker:
    """The host's storm breaker.

    Args:
        settings: returns the configured limits; None: there is none.
        domains: returns how many domains the host has.
    """

    def __init__(self, settings: Callable[[], Storm | None], domains: Callable[[], int]) -> None:
        self._settings = settings
        self._domains = domains
        self._panics: dict[str, float] = {}
        self._limiter = trio.CapacityLimiter(1)
        self._raged = False

    def note(self, domain: str, at: float) -> None:
        """Take in a domain's panic.

        Args:
            domain: its key.
            at: when, in seconds since the epoch.
        """
        self.remember(domain, at)
        self.rages(at)

    def remember(self, domain: str, at: float) -> None:
        """Take in a panic that the daemon's last run had noted; arguments as for ``note``."""
        self._panics.pop(domain, None)  # so that they are in their order, the oldest first
        self._panics[domain] = at

    @property
    def raged(self) -> bool:
        """Whether there was a storm when that was last asked; from any thread."""
        return self._raged

    def rages(self, now: float) -> bool:
        """Whether there is a storm; says so in the log when it begins and when it ends."""
        storm = self._settings()
        if storm is None:
            self._raged = False
            return False
        while self._panics:
            oldest = next(iter(self._panics))
            if now - self._panics[oldest] < storm.window:
                break
            del self._panics[oldest]
        rages = is_storm(storm, self._panics.values(), self._domains(), now)
        if rages is not self._raged:
            self._raged = rages
            tell = get_logger().error if rages else get_logger().info
            tell(
                "many domains panic at once" if rages else "no longer many domains panic at once",
                domains=len(self._panics),
                window=storm.window,
                then=storm.then,
            )
        return rages

    def preserves(self, now: float) -> bool:
        """Whether destructive actions are to be left to an operator now."""
        storm = self._settings()
        return storm is not None and storm.then is StormAction.PRESERVE and self.rages(now)

    def outlook(self, now: float) -> StormOutlook:
        """Return whose next panic would be left to an operator; from any thread."""
        storm = self._settings()
        if storm is None or storm.then is not StormAction.PRESERVE:
            return NO_STORM
        return storm_outlook(storm, self._panics.copy().items(), self._domains(), now)

    def turn(self, now: float) -> trio.CapacityLimiter | None:
        """Return what a destructive action has to take its turn at now; None: nothing."""
        storm = self._settings()
        if storm is None or storm.then is not StormAction.LIMIT or not self.rages(now):
            return None
        self._limiter.total_tokens = storm.at_once
        return self._limiter
