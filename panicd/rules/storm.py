"""The storm breaker: when many domains panic within a short time, they are not the cause.

A user with many domains can make many panic. So the domains of one user, as the host vouches for
him, cause a storm only for his own domains. For everybody else's they count as one, however many
they are.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from panicd.rules.identity import owner_of
from panicd.rules.settings import Storm


@dataclass(frozen=True, slots=True)
class StormOutlook:
    """Whether the next panic of a domain would be one of a storm.

    Attributes:
        storm: the configured limits; None: no storm leaves domains to an operator.
        panicked: the keys of the domains that panicked lately, by their owner's uid.
        domains: the number of domains on the host, by their owner's uid.
    """

    storm: Storm | None
    panicked: Mapping[int | None, frozenset[str]]
    domains: Mapping[int | None, int]

    def hits(self, domain: str) -> bool:
        """Whether a panic of this domain (its key) would now be one of a storm."""
        if self.storm is None:
            return False
        owner = owner_of(domain)
        own = self.panicked.get(owner, frozenset())
        others = len(self.panicked) - (owner in self.panicked)
        panicked = len(own) + (domain not in own) + others
        return panicked >= _enough(self.storm, self.domains, owner)


NO_STORM: Final = StormOutlook(None, {}, {})


def is_storm(
    storm: Storm,
    panicked: Mapping[int | None, int],
    domains: Mapping[int | None, int],
    owner: int | None,
    *,
    more: int = 0,
) -> bool:
    """Whether so many domains panicked lately that acting on another of the owner's would harm.

    Args:
        storm: the configured limits.
        panicked: the number of domains that panicked within the window, by their owner's uid; none
            of them 0.
        domains: the number of domains on the host, by their owner's uid; none of them 0.
        owner: the owner of the domain to act on; None: unknown.
        more: of the owner's domains that count as well.
    """
    return _seen_by(owner, panicked) + more >= _enough(storm, domains, owner)


def storm_outlook(
    storm: Storm,
    panics: Iterable[tuple[str, float]],
    domains: Mapping[int | None, int],
    now: float,
) -> StormOutlook:
    """Return the outlook for the next panic; arguments as of ``is_storm``, with keys."""
    recent: dict[int | None, set[str]] = defaultdict(set)
    for key, at in panics:
        if now - at < storm.window:
            recent[owner_of(key)].add(key)
    return StormOutlook(storm, {uid: frozenset(keys) for uid, keys in recent.items()}, domains)


def _enough(storm: Storm, domains: Mapping[int | None, int], owner: int | None) -> float:
    return max(storm.minimum, storm.share * _seen_by(owner, domains))


def _seen_by(owner: int | None, counts: Mapping[int | None, int]) -> int:
    """Return a sum of counts, none of them 0, in which each other owner counts once."""
    return counts.get(owner, 0) + len(counts) - (owner in counts)
