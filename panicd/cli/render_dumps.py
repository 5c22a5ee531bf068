"""The memory dumps that go on, as ``panicd status`` shows them: a bar for each, and who waits."""

from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any, Final

from rich.console import RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table

from panicd.cli.terminal import line

BAR: Final = 24  # columns
GIB, MIB = 1 << 30, 1 << 20


def dumps(domains: Iterable[dict[str, Any]], now: float) -> Iterator[RenderableType]:
    """Yield what there is to show; nothing where there is no dump.

    Args:
        domains: as ``status`` answers.
        now: seconds since the epoch, by the daemon's clock.
    """
    going_on = [domain for domain in domains if domain["dump"] is not None]
    if not going_on:
        return
    table = Table.grid(padding=(0, 2))
    for domain in sorted(going_on, key=lambda domain: domain["dump"]["since"]):
        name, dump = domain["domain"], domain["dump"]
        if dump["state"] == "waiting":
            waits = f"waits for {_time(now - dump['since'])}, {dump['ahead']} before it"
            table.add_row("dump of", name, line((waits, "yellow")))
            continue
        total, done = dump["total"], dump["done"]
        bar: RenderableType = ProgressBar(total, done, width=BAR) if total else ""
        size = f"{done / GIB:.2f} of {total / GIB:.2f} GiB" if total else f"{done / GIB:.2f} GiB"
        if dump["left_out"]:
            size += f", {dump['left_out'] / GIB:.2f} left out"
        rate = f"{dump['rate'] / MIB:.0f} MiB/s" if dump["rate"] else ""
        table.add_row("dump of", name, bar, size, rate, _left(dump, now))
    yield ""
    yield table


def _left(dump: dict[str, Any], now: float) -> str:
    if dump["left"] is None:
        return f"for {_time(now - dump['since'])}"
    return f"{_time(dump['left'])} left" if dump["left"] else "being made durable"


def _time(seconds: float) -> str:
    return str(timedelta(seconds=max(0, round(seconds))))
