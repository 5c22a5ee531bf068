"""Watches for storms, and limits the actions during one."""

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
        settings: returns the configured limits; None: none.
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
        """Count a domain's panic.

        Args:
            domain: its key.
            at: the panic's time, in seconds since the epoch.
        """
        self.remember(domain, at)
        self.rages(at)

    def remember(self, domain: str, at: float) -> None:
        """Count a panic that the daemon's last run noted; arguments as for ``note``."""
        self._panics.pop(domain, None)  # so that the oldest comes first
        self._panics[domain] = at

    def shift(self, seconds: float) -> None:
        """Shift the times of all panics after the clock was set by some seconds."""
        self._panics = {domain: at + seconds for domain, at in self._panics.items()}

    @property
    def raged(self) -> bool:
        """True if ``rages`` last found a storm; safe in any thread."""
        return self._raged

    def rages(self, now: float) -> bool:
        """Return whether any owner has a storm; log its begin and end."""
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
        """Return whether destructive actions on an owner's domains wait for an operator now.

        Args:
            owner: of the domain to act on.
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
        """Return whether panicd acts on few domains at a time; arguments as for ``preserves``."""
        storm = self._settings()
        return (
            storm is not None
            and storm.then is StormAction.LIMIT
            and self._hits(storm, owner, now, also)
        )

    def outlook(self, now: float) -> StormOutlook:
        """Return the owners whose next panic would wait for an operator; safe in any thread."""
        storm = self._settings()
        if storm is None or storm.then is not StormAction.PRESERVE:
            return NO_STORM
        return storm_outlook(storm, self._panics.copy().items(), self._domains(), now)

    def turn(self, owner: int | None) -> trio.CapacityLimiter:
        """Return the limiter of destructive actions on an owner's domains.

        Each owner has a limiter: no owner waits for another.
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
        """Return whether an owner has a storm, one more domain's panic included.

        Each input of a domain asks this, and mostly gets the answer at once.
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
