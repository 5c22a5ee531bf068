"""The storm breaker: when many domains panic within a short time, they are not the cause."""

from collections.abc import Iterable

from panicd.rules.settings import Storm


def is_storm(storm: Storm, panics: Iterable[float], domains: int, now: float) -> bool:
    """Whether so many domains panicked lately that acting on each would do harm.

    Args:
        storm: the configured limits.
        panics: when each domain panicked last, in seconds since the epoch.
        domains: how many the host has.
        now: seconds since the epoch.
    """
    enough = max(storm.minimum, storm.share * domains)
    recent = (at for at in panics if now - at < storm.window)
    return any(number >= enough for number, _ in enumerate(recent, 1))  # counts no further
