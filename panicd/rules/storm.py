"""The storm breaker: when many domains panic within a short time, they are not the cause.

Whoever has many domains can have many panic. So the domains of one user, as the host vouches for
him, bring about a storm for that user's domains; for everybody else's they count as one, however
many they are.
"""

from collections.abc import Iterable, Mapping

from panicd.rules.settings import Storm


def is_storm(
    storm: Storm,
    panics: Mapping[int | None, Iterable[float]],
    domains: Mapping[int | None, int],
    owner: int | None,
    now: float,
) -> bool:
    """Whether so many domains panicked lately that acting on one more of an owner's would do harm.

    Args:
        storm: the configured limits.
        panics: when each domain panicked last, in seconds since the epoch, by its owner's uid.
        domains: how many there are on the host, by their owner's uid.
        owner: whose domain is to be acted on; None: it is not known.
        now: seconds since the epoch.
    """
    recent = {
        uid: count
        for uid, times in panics.items()
        if (count := sum(now - at < storm.window for at in times))
    }
    enough = max(storm.minimum, storm.share * _seen_by(owner, domains))
    return _seen_by(owner, recent) >= enough


def _seen_by(owner: int | None, counts: Mapping[int | None, int]) -> int:
    """Return a sum in which each other owner counts once."""
    return sum(count if uid == owner else min(count, 1) for uid, count in counts.items())
