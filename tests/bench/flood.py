"""How soon panicd reacts to other domains' panics while one guest panics as fast as it can.

    python -m tests.bench.flood [--count N] [--singles N] [--rounds N] [--share 10%] [--budget 0s]

The others are monitors served by ``fleet.c``, which measures from before a panic's event is written
to the ``system_reset`` that it reads: panicd restarts them, as shipped but for the evidence budget.
The flooding guest is a real QEMU's, a boot sector in a loop, ignored for ever. Spells take turns,
so that what else the machine does falls on all alike:

- quiet: that QEMU's guest waits;
- elsewhere: it floods a monitor that is not panicd's and that nobody reads, which is what a QEMU
  that burns two threads costs its neighbours whatever panicd does;
- flood: it floods panicd.

Beside the times: the processor time that panicd takes, and its memory.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio

from panicd.demo.guests import Guest
from tests.bench.fleet import LAST_QUESTION, Fleet, compile_program
from tests.parts.daemon import ExecutedDaemon
from tests.parts.qemu import RealQemu
from tests.parts.vitals import cpu_seconds, resident_bytes

SPELLS = ("quiet", "elsewhere", "flood")
BAD = "bad"
SETTLE = 2.0
"""Seconds from the beginning of a spell to what is measured of it."""

PAUSE = 0.01
"""Seconds between two panics of the others."""

ENDLESS = {"max": 1_000_000, "window": "1h", "min_uptime": "0s"}
RECEIVE_SIZE = 1 << 16


@dataclass
class Figures:
    """What was measured of one kind of spell: times in seconds, memory in bytes."""

    reactions: list[float] = field(default_factory=list)
    quantiles: list[tuple[float, float]] = field(default_factory=list)
    cpu_shares: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100, help="of other domains")
    parser.add_argument("--singles", type=int, default=500, help="panics of theirs in each spell")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--share", default="10%", help="flood.share")
    parser.add_argument("--budget", default="0s", help="evidence.budget")
    options = parser.parse_args()
    print(f"load at the beginning: {os.getloadavg()[0]:.1f}, {os.cpu_count()} CPUs")
    with tempfile.TemporaryDirectory(prefix="panicd-") as directory:
        figures = trio.run(partial(measure, Path(directory), options))
    print(f"load at the end: {os.getloadavg()[0]:.1f}")
    show(figures)


async def measure(directory: Path, options: argparse.Namespace) -> dict[str, Figures]:
    """Return what was measured, by the kind of spell."""
    program = directory / "fleet.program"
    compile_program(Path(__file__).parent / "fleet.c", program)
    others, elsewhere = directory / "o", directory / "e"
    others.mkdir()
    elsewhere.mkdir()
    fleet = Fleet(program, others, options.count)
    figures: dict[str, Figures] = defaultdict(Figures)
    try:
        async with ExecutedDaemon.start(
            directory,
            {
                "on_crash": "restart",
                "restart": ENDLESS,
                "evidence": {"budget": options.budget},
                "flood": {"then": "ignore", "share": options.share},
            },
            domains=[{"match": BAD, "on_crash": "ignore"}],
            monitors=[{"glob": str(where / "*.qmp")} for where in (others, directory)],
            storm="off",
            time_limit=3600,
        ) as daemon:
            await trio.to_thread.run_sync(fleet.ask, f"heard {LAST_QUESTION}")
            await daemon.wait_log("policy in force", count=options.count)
            for _ in range(options.rounds):
                for name in SPELLS:
                    where = elsewhere if name == "elsewhere" else directory
                    async with a_guest(daemon, where, floods=name != "quiet"):
                        await trio.sleep(SETTLE)
                        await spell(daemon, fleet, options, figures[name])
    finally:
        fleet.end()
    return figures


@asynccontextmanager
async def a_guest(daemon: ExecutedDaemon, directory: Path, *, floods: bool) -> AsyncIterator[None]:
    """Run the QEMU of one spell."""
    mark = daemon.mark()
    async with RealQemu.start(directory, name=BAD, guest=Guest.FLOOD, paused=True) as bad:
        await bad.set_panic_action("none")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as unread:
            if directory == daemon.directory:
                await daemon.wait_armed(BAD, since=mark)
            else:
                await trio.to_thread.run_sync(negotiate, unread, bad.socket)
            if floods:
                await bad.start_guest()
                # Reading what it hears would take a processor; a closed monitor hears nothing.
                bad.witness.hang_up()
            yield


def negotiate(sock: socket.socket, path: Path) -> None:
    """Make a QMP session, whose events will be left unread."""
    sock.connect(bytes(path))
    sock.recv(RECEIVE_SIZE)
    sock.sendall(json.dumps({"execute": "qmp_capabilities"}).encode())
    sock.recv(RECEIVE_SIZE)


async def spell(
    daemon: ExecutedDaemon, fleet: Fleet, options: argparse.Namespace, figures: Figures
) -> None:
    """Have one of the others panic after the other."""
    began, used = time.monotonic(), cpu_seconds(daemon.pid)
    reactions: list[float] = []
    for number in range(options.singles):
        command = f"panic {number * 7 % options.count} 1"
        answer = await trio.to_thread.run_sync(fleet.ask, command)
        reactions.append(answer["microseconds"][0] / 1e6)
        await trio.sleep(PAUSE)
    figures.cpu_shares.append((cpu_seconds(daemon.pid) - used) / (time.monotonic() - began))
    figures.memory.append(resident_bytes(daemon.pid))
    figures.quantiles.append(quantiles(reactions))
    figures.reactions += reactions


def quantiles(reactions: list[float]) -> tuple[float, float]:
    """Return the median and the 99th percentile."""
    *_, last = statistics.quantiles(reactions, n=100, method="inclusive")
    return statistics.median(reactions), last


def show(figures: dict[str, Figures]) -> None:
    """Print the table."""
    print("| | panics | p50 ms | p99 ms (of each spell) | longest ms | panicd, of a core | MB |")
    print("|---|---|---|---|---|---|---|")
    for name, of in figures.items():
        middle, last = quantiles(of.reactions)
        spells = ", ".join(f"{1e3 * p99:.1f}" for _, p99 in of.quantiles)
        print(
            f"| {name} | {len(of.reactions)} | {1e3 * middle:.2f} | {1e3 * last:.2f} ({spells}) "
            f"| {1e3 * max(of.reactions):.1f} "
            f"| {100 * statistics.median(of.cpu_shares):.0f} % | {max(of.memory) / 1e6:.0f} |"
        )


if __name__ == "__main__":
    main()
