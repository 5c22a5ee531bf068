"""Times as people type and read them, and as programs do."""

import re
from datetime import UTC, datetime
from typing import Final

SECONDS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_AGO: Final = re.compile(r"([0-9]{1,9})([smhd])")


def parse_moment(text: str, now: float) -> float:
    """Return the point in time that a text names, in seconds since the epoch.

    Args:
        text: a number with ``s``, ``m``, ``h`` or ``d``: that long ago. Or a date of ISO 8601,
            with or without a time. A date is local, unless it has an offset.
        now: in seconds since the epoch.

    Raises:
        ValueError: it names none.
    """
    ago = _AGO.fullmatch(text)
    if ago is not None:
        return now - int(ago[1]) * SECONDS[ago[2]]
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        raise ValueError(
            f"expected how long ago, such as 30m, 2h or 7d, or a date such as 2026-11-23 or "
            f"2026-11-23T04:00 (got {text!r})"
        ) from None


def written_time(seconds: float) -> str:
    """Return a time, from seconds since the epoch, in the local zone, which it names."""
    return f"{datetime.fromtimestamp(seconds).astimezone():%Y-%m-%d %H:%M:%S %Z}"


def rfc3339(seconds: float) -> str:
    """Return a time, from seconds since the epoch, in UTC, as programs read it."""
    written = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    return written.replace("+00:00", "Z")


def age(seconds: float) -> str:
    """Return how long something has lasted, in its largest unit: 40s, 12m, 3h, 5d."""
    unit = next((unit for unit in "dhm" if seconds >= SECONDS[unit]), "s")
    return f"{max(0, int(seconds // SECONDS[unit]))}{unit}"
