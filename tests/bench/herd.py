"""How soon all domains are attached again when all their QEMUs went away at once and came back.

    python -m tests.bench.herd [--count N] [--rounds N] [--away SECONDS]

``fleet.c`` serves the monitors. Gone: its process is killed, with every connection, and begins anew
after a while, as after a power cut of all guests. Frozen: it is stopped (SIGSTOP) and goes on, as
with a frozen cgroup; meanwhile panicd asks each for something and gives it up.

"attached again" is from before the first comes back until the policy of the last is in force;
panicd's processor time while all are away is what its tries cost.
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import trio

from tests.bench.fleet import Fleet, compile_program
from tests.parts.daemon import ExecutedDaemon
from tests.parts.vitals import cpu_seconds, resident_bytes
from tests.parts.wire import Message

AWAY = "monitor is not connected"
FORCE = "policy in force"


@dataclass
class Figures:
    """What was measured of one way to be away: seconds, processor time, bytes."""

    attached: list[float] = field(default_factory=list)
    cpu_away: list[float] = field(default_factory=list)
    cpu_back: list[float] = field(default_factory=list)
    tries: list[int] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)


class CountingDaemon(ExecutedDaemon):
    """A daemon whose lines are counted and not kept: thousands would be looked through each time.

    Attributes:
        told: How often each was logged.
    """

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._killed = True  # its log is not kept: it is not compared with the journal
        self.told: Counter[str] = Counter()

    def _take(self, *lines: Message) -> None:
        self.told.update(line["event"] for line in lines)
        self._changed.unpark_all()

    async def wait_told(self, event: str, count: int) -> None:
        """Wait until something was logged so often."""
        await self._wait(lambda: self.told[event] >= count)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000, help="of domains")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--away", type=float, default=15.0, help="seconds without them")
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    print(f"load at the beginning: {os.getloadavg()[0]:.1f}, {os.cpu_count()} CPUs")
    figures = {"gone": Figures(), "frozen": Figures()}
    with tempfile.TemporaryDirectory(prefix="panicd-") as directory:
        trio.run(partial(measure, Path(directory), options, figures))
    print(f"load at the end: {os.getloadavg()[0]:.1f}")
    show(figures, options)


async def measure(
    directory: Path, options: argparse.Namespace, figures: dict[str, Figures]
) -> None:
    """Have all go away and come back, in both ways in turn."""
    program, monitors = directory / "fleet", directory / "m"
    await trio.to_thread.run_sync(compile_program, Path(__file__).parent / "fleet.c", program)
    monitors.mkdir()
    count: int = options.count
    async with CountingDaemon.start(
        directory, monitors=[{"glob": str(monitors / "*.qmp")}], time_limit=3600
    ) as daemon:
        fleet = Fleet(program, monitors, count)
        try:
            await daemon.wait_told(FORCE, count)
            settings = itertools.cycle(["ignore", "preserve"])
            for _ in range(options.rounds):
                daemon.told.clear()
                fleet.kill()
                await be_away(daemon, options, figures["gone"])
                async with coming_back(daemon, count, figures["gone"]):
                    for path in monitors.glob("*.qmp"):
                        path.unlink()
                    fleet = Fleet(program, monitors, count)

                daemon.told.clear()
                fleet.freeze()
                setting = next(settings)
                daemon.write_config(defaults={"on_crash": setting})
                await daemon.call("reload")  # for that each is told something, and does not answer
                await be_away(daemon, options, figures["frozen"])
                async with coming_back(daemon, count, figures["frozen"]):
                    fleet.thaw()
        finally:
            fleet.thaw()
            fleet.end()


async def be_away(daemon: CountingDaemon, options: argparse.Namespace, figures: Figures) -> None:
    """See all go, and stay away for a while."""
    await daemon.wait_told(AWAY, options.count)
    before, used = await attempts(daemon), cpu_seconds(daemon.pid)
    await trio.sleep(options.away)
    figures.cpu_away.append((cpu_seconds(daemon.pid) - used) / options.away)
    after = await attempts(daemon)
    figures.tries.append(sum((after - before).values()))


@asynccontextmanager
async def coming_back(daemon: CountingDaemon, count: int, figures: Figures) -> AsyncIterator[None]:
    """Measure how all come back that the body lets come back."""
    daemon.told.clear()
    used, began = cpu_seconds(daemon.pid), time.monotonic()
    yield
    await daemon.wait_told(FORCE, count)
    figures.attached.append(time.monotonic() - began)
    figures.cpu_back.append(cpu_seconds(daemon.pid) - used)
    figures.memory.append(resident_bytes(daemon.pid))
    status = await daemon.call("status")
    assert all(domain["connected"] for domain in status["domains"])
    assert len(status["domains"]) == count


async def attempts(daemon: CountingDaemon) -> Counter[str]:
    """How often each domain's monitor was tried since it went away."""
    domains = (await daemon.call("status"))["domains"]
    return Counter({domain["monitor"]: domain["attempts"] for domain in domains})


def show(figures: dict[str, Figures], options: argparse.Namespace) -> None:
    """Print the table."""
    print(
        f"| {options.count} domains | attached again, s (spread) | processor time for that, s "
        "| while away: of a core | tries a domain and minute | MB |"
    )
    print("|---|---|---|---|---|---|")
    for name, of in figures.items():
        tries = statistics.median(of.tries) / options.count / options.away * 60
        print(
            f"| {name} | {statistics.median(of.attached):.1f} "
            f"({min(of.attached):.1f}-{max(of.attached):.1f}) "
            f"| {statistics.median(of.cpu_back):.1f} "
            f"| {100 * statistics.median(of.cpu_away):.0f} % | {tries:.0f} "
            f"| {of.memory[0] / 1e6:.0f} -> {of.memory[-1] / 1e6:.0f} |"
        )


if __name__ == "__main__":
    main()
