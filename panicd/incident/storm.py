"""Watches for storms, and limits the actions during one."""

from collections import Counter
from collections.abc import Callable, Mapping
from operator import itemgetter

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
        self._panics: dict[str, float] = {}  # by domain, the oldest first
        self._by_owner: Counter[int | None] = Counter()  # how many of them
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
        self._forget(domain)  # so that the oldest comes first
        latest = next(reversed(self._panics.values()), at)
        self._panics[domain] = at
        self._by_owner[owner_of(domain)] += 1
        if at < latest:  # the clock was set back while no panicd ran
            self._panics = dict(sorted(self._panics.items(), key=itemgetter(1)))

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
        self._forget_old(storm, now)
        domains = self._domains()
        panicked = self._by_owner
        hit = [owner for owner in panicked if is_storm(storm, panicked, domains, owner)]
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

    def preserves(self, domain: str, now: float) -> bool:
        """Return whether destructive actions on a domain wait for an operator now.

        Args:
            domain: its key; it counts as one that has panicked.
            now: seconds since the epoch.
        """
        storm = self._settings()
        return (
            storm is not None
            and storm.then is StormAction.PRESERVE
            and self._hits(storm, domain, now)
        )

    def limits(self, domain: str, now: float) -> bool:
        """Return whether panicd acts on few domains at a time; arguments as for ``preserves``."""
        storm = self._settings()
        return (
            storm is not None and storm.then is StormAction.LIMIT and self._hits(storm, domain, now)
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

    def _hits(self, storm: Storm, domain: str, now: float) -> bool:
        """Return whether a domain is one of a storm, if it has panicked.

        Each input of a domain asks this, in a storm of thousands too: so all is counted before.
        """
        if len(self._panics) + 1 < storm.minimum:
            return False
        self._forget_old(storm, now)
        more = int(domain not in self._panics)
        owner = owner_of(domain)
        return is_storm(storm, self._by_owner, self._domains(), owner, more=more)

    def _forget_old(self, storm: Storm, now: float) -> None:
        while self._panics:
            oldest = next(iter(self._panics))
            if now - self._panics[oldest] < storm.window:
                break
            self._forget(oldest)

    def _forget(self, domain: str) -> None:
        if self._panics.pop(domain, None) is not None:
            owner = owner_of(domain)
            self._by_owner[owner] -= 1
            if not self._by_owner[owner]:
                del self._by_owner[owner]
