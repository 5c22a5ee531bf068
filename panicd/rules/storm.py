"""The storm breaker: when many domains panic within a short time, they are not the cause."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from panicd.rules.settings import Storm


@dataclass(frozen=True, slots=True)
class StormOutlook:
    """Whether the next panic of a domain would be one of a storm.

    Attributes:
        panicked: the keys of the domains that panicked lately.
        enough: so many make a storm.
    """

    panicked: frozenset[str]
    enough: float

    def hits(self, domain: str) -> bool:
        """Whether there would be a storm if a domain, by its key, panicked now."""
        return len(self.panicked) + (domain not in self.panicked) >= self.enough


NO_STORM: Final = StormOutlook(frozenset(), float("inf"))


def is_storm(storm: Storm, panics: Iterable[float], domains: int, now: float) -> bool:
    """Whether so many domains panicked lately that acting on each would do harm.

    Args:
        storm: the configured limits.
        panics: when each domain panicked last, in seconds since the epoch.
        domains: how many the host has.
        now: seconds since the epoch.
    """
    enough = _enough(storm, domains)
    recent = (at for at in panics if now - at < storm.window)
    return any(number >= enough for number, _ in enumerate(recent, 1))  # counts no further


def storm_outlook(
    storm: Storm, panics: Iterable[tuple[str, float]], domains: int, now: float
) -> StormOutlook:
    """Return what the next panic would meet; arguments as of ``is_storm``, with the keys."""
    recent = frozenset(key for key, at in panics if now - at < storm.window)
    return StormOutlook(recent, _enough(storm, domains))


def _enough(storm: Storm, domains: int) -> float:
    return max(storm.minimum, storm.share * domains)
