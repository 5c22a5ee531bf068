"""Times as people type them."""

import time

import pytest

from panicd.cli.moment import parse_moment

NOW = 1_795_000_000.0


def local(*parts: int) -> float:
    """Return the local time of a year, month, day and so on."""
    year, month, day, hour, minute, second = (*parts, 0, 0, 0)[:6]
    return time.mktime((year, month, day, hour, minute, second, -1, -1, -1))


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("90s", NOW - 90),
        ("30m", NOW - 1800),
        ("2h", NOW - 7200),
        ("7d", NOW - 7 * 86400),
        ("2026-11-23", local(2026, 11, 23)),
        ("2026-11-23T04:00", local(2026, 11, 23, 4)),
        ("2026-11-23 04:00:30", local(2026, 11, 23, 4, 0, 30)),
        ("2026-11-23T04:00Z", 1795406400.0),
        ("2026-11-23T04:00+02:00", 1795399200.0),
    ],
)
def test_times(text: str, at: float) -> None:
    assert parse_moment(text, NOW) == at


@pytest.mark.parametrize(
    "text", ["", "2", "h", "-2h", "2h30", "1w", "yesterday", "2026-13-01", "0001-01-01", "٢h"]
)
def test_what_is_no_time_is_refused_with_what_is_expected(text: str) -> None:
    with pytest.raises(ValueError, match="expected how long ago, such as 30m") as refused:
        parse_moment(text, NOW)
    assert repr(text) in str(refused.value)
