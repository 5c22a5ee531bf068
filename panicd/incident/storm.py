"""Watches for many domains panicking at once, and limits what is done about each meanwhile."""

from collections import defaultdict
from collections.abc import Callable, Mapping

import trio

from panicd.host.logs import get_logger
from panicd.rules.identity import owner_of
from panicd.rules.settings import Storm, StormAction
from panicd.rules.storm import NO_STORM, StormOutlook, is_storm, storm_outlook


class StormWatch:
    """The host's storm breaker; each owner's domains may have a storm of their own.

    Args:
        settings: returns the configured limits; None: there is none.
        domains: returns how many domains the host has, by their owner's uid.
    """

    def __init__(
        self, settings: Callable[[], Storm | None], domains: Callable[[], Mapping[int | None, int]]
    ) -> None:
        self._settings = settings
        self._domains = domains
        self._panics: dict[str, float] = {}
        self._limiters: dict[int | None, trio.CapacityLimiter] = {}
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

    def shift(self, seconds: float) -> None:
        """Have all panics be as long ago as they are: the clock was set by so many seconds."""
        self._panics = {domain: at + seconds for domain, at in self._panics.items()}

    @property
    def raged(self) -> bool:
        """Whether there was a storm when that was last asked; from any thread."""
        return self._raged

    def rages(self, now: float) -> bool:
        """Whether there is a storm for anybody; says so in the log when it begins and ends."""
        storm = self._settings()
        if storm is None:
            self._raged = False
            return False
        while self._panics:
            oldest = next(iter(self._panics))
            if now - self._panics[oldest] < storm.window:
                break
            del self._panics[oldest]
        hit = self._owners_hit(storm, now)
        if bool(hit) is not self._raged:
            self._raged = bool(hit)
            tell = get_logger().error if hit else get_logger().info
            tell(
                "many domains panic at once" if hit else "no longer many domains panic at once",
                domains=len(self._panics),
                owners=hit,
                window=storm.window,
                then=storm.then,
            )
        return self._raged

    def preserves(self, owner: int | None, now: float, *, also: str) -> bool:
        """Whether destructive actions on an owner's domains are to be left to an operator now.

        Args:
            owner: whose domain is to be acted on.
            now: seconds since the epoch.
            also: the key of a domain that has panicked as well.
        """
        storm = self._settings()
        return (
            storm is not None
            and storm.then is StormAction.PRESERVE
            and self._hits(storm, owner, now, also)
        )

    def limits(self, owner: int | None, now: float, *, also: str) -> bool:
        """Whether few may be acted on at a time now; arguments as for ``preserves``."""
        storm = self._settings()
        return (
            storm is not None
            and storm.then is StormAction.LIMIT
            and self._hits(storm, owner, now, also)
        )

    def outlook(self, now: float) -> StormOutlook:
        """Return whose next panic would be left to an operator; from any thread."""
        storm = self._settings()
        if storm is None or storm.then is not StormAction.PRESERVE:
            return NO_STORM
        return storm_outlook(storm, self._panics.copy().items(), self._domains(), now)

    def turn(self, owner: int | None) -> trio.CapacityLimiter:
        """Return what a destructive action on an owner's domain takes its turn at.

        Each owner's domains have turns of their own: nobody waits for another's.
        """
        storm = self._settings()
        limiter = self._limiters.setdefault(owner, trio.CapacityLimiter(1))
        if storm is not None:
            limiter.total_tokens = storm.at_once
        return limiter

    def _owners_hit(self, storm: Storm, now: float) -> list[int | None]:
        panics, domains = self._panics_by_owner(), self._domains()
        return [owner for owner in panics if is_storm(storm, panics, domains, owner, now)]

    def _hits(self, storm: Storm, owner: int | None, now: float, also: str) -> bool:
        """Whether there is a storm for an owner, one more domain's panic included.

        It is asked at each thing that happens to a domain, and then mostly answered at once.
        """
        if len(self._panics) + 1 < storm.minimum:
            return False
        panics = self._panics_by_owner()
        if also not in self._panics:
            panics[owner_of(also)].append(now)
        return is_storm(storm, panics, self._domains(), owner, now)

    def _panics_by_owner(self) -> dict[int | None, list[float]]:
        panics: dict[int | None, list[float]] = defaultdict(list)
        for key, at in self._panics.items():
            panics[owner_of(key)].append(at)
        return panics
