"""The running memory dumps, as ``panicd status`` shows them: a bar for each, and which wait."""

from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any, Final

from panicd.host.terminal import Text, grid, line

BAR: Final = 24  # columns
GIB, MIB = 1 << 30, 1 << 20


def dumps(domains: Iterable[dict[str, Any]], now: float) -> Iterator[Text]:
    """Yield a line for each dump; nothing if there is none.

    Args:
        domains: as ``status`` answers.
        now: seconds since the epoch, by the daemon's clock.
    """
    going_on = [domain for domain in domains if domain["dump"] is not None]
    going_on.sort(key=lambda domain: domain["dump"]["since"])
    yield from grid(cells(domain["domain"], domain["dump"], now) for domain in going_on)


def cells(name: str, dump: dict[str, Any], now: float) -> tuple[str | Text, ...]:
    """Return the cells of one dump: what, a bar, how far, how fast, how long."""
    if dump["state"] == "waiting":
        waits = f"waits for {_time(now - dump['since'])}, {dump['ahead']} before it"
        return (f"dump of {name}", line((waits, "yellow")))
    total, done = dump["total"], dump["done"]
    size = f"{dump['written'] / MIB:,.0f}"
    if dump["expected"] is None:
        size += " MiB written (of a total not known yet)"
    else:
        size += f" of about {dump['expected'] / MIB:,.0f} MiB written"
    if dump["left_out"]:
        size += f", {dump['left_out'] / GIB:.2f} GiB left out"
    rate = f"{dump['rate'] / MIB:.0f} MiB/s read" if dump["rate"] else ""
    filled = BAR * done // total if total else 0
    bar = "━" * filled + "╌" * (BAR - filled) if total else ""
    return (f"dump of {name}", bar, size, rate, _left(dump, now))


def _left(dump: dict[str, Any], now: float) -> str:
    if dump["left"] is None:
        return f"for {_time(now - dump['since'])}"
    return f"{_time(dump['left'])} left" if dump["left"] else "being made durable"


def _time(seconds: float) -> str:
    return str(timedelta(seconds=max(0, round(seconds))))
