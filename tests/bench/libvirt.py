"""How soon a panicked domain of libvirt's is acted on: by libvirt itself, and by panicd through it.

    python -m tests.bench.libvirt [--rounds N] [--journal DIRECTORY]

In each round one domain after the other panics, so that all of them meet the same machine. Told is
the time from GUEST_PANICKED's own timestamp to those of RESET and RESUME (``restart``), all of them
QEMU's, and to when QEMU's process is gone (``destroy``); a ratio is that of one round's times, and
its median is given. ``libvirt``: its own ``<on_crash>``, on a libvirtd of its own, for panicd takes
over every domain of one that it knows. ``bare``: the least that a client can do, on that libvirtd,
which preserves its domains; ``durable bare`` first makes a hundred bytes durable
(``tests.bench.bare``). ``panicd``: without evidence, as libvirt keeps none; ``with evidence``: it
keeps what it can first. panicd has the priority that its unit gives it. Both libvirtds are the same
program, each with its own files, as in ``tests/parts/libvirt.py``: it takes root. The journal is
durable; ``--journal`` has it elsewhere, to tell the disk's share.

From the key at which the guest panics until all is over this process stands still: it would take a
processor from those that it measures. What it is told meanwhile it reads later. No other guest
runs.
"""

from __future__ import annotations

import argparse
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from panicd.libvirt import requests
from panicd.libvirt.protocol import DomainRef, QemuEvent
from panicd.libvirt.xdr import pack_uint
from tests.bench import AS_THE_SERVICE
from tests.parts.daemon import ExecutedDaemon
from tests.parts.libvirt import Libvirtd, PlainDomain
from tests.parts.libvirt_client import Listener, connected

TIME_LIMIT = 120.0
"""Seconds that one guest's panic may take."""

STANDS_STILL = 0.4
"""Seconds in which a restart is over; evidence takes the longest."""

GONE_WITHIN = 10.0
"""Seconds in which a QEMU that is destroyed is gone."""

SEND_KEY = 226  # REMOTE_PROC_DOMAIN_SEND_KEY
KEY_A = 30  # linux/input-event-codes.h

ENDLESS = {"max": 999_999, "window": "1h", "min_uptime": "0s"}
NO_EVIDENCE = {"evidence": {"budget": "0s"}}
EVIDENCE = {"evidence": {"budget": "3s"}}
BARE = ("bare", "durable bare")
BY_PANICD = ("panicd", "with evidence")


class DaemonAsService(ExecutedDaemon):
    """A daemon with its service's priority."""

    before = AS_THE_SERVICE


Times = dict[tuple[str, str], list[float]]


@dataclass
class Subject:
    """Who acts on a domain's panic."""

    libvirtd: Libvirtd
    listener: Listener
    directory: Path
    name: str
    daemon: ExecutedDaemon | None

    @asynccontextmanager
    async def domain(self, on_crash: str) -> AsyncIterator[PlainDomain]:
        """Have a domain that is about to panic, on a key."""
        name = f"{self.name.replace(' ', '-')}-{on_crash}"
        mark = self.daemon.mark() if self.daemon else 0
        own = "preserve" if self.name in BARE else on_crash
        async with self.libvirtd.plain_domain(self.directory, own, name=name) as domain:
            if self.daemon is not None:
                await self.daemon.wait_armed(name, since=mark)
            yield domain

    async def panic(self, domain: PlainDomain, stand_still: Callable[[], None]) -> float:
        """Have its guest panic, and stand still meanwhile; return when it did."""
        mark = len(self.listener.events)
        client = self.listener.client
        listed = await client.call(requests.list_domains(), timeout=TIME_LIMIT)
        (which,) = [each for each in listed if each.name == domain.name]
        client.ask(press_key(which), lambda _answer: None, timeout=TIME_LIMIT)
        stand_still()
        return await self.at("GUEST_PANICKED", domain, mark)

    async def at(self, event: str, domain: PlainDomain, since: int) -> float:
        """Return when QEMU's event came about, by its own word; seconds since the epoch."""
        found: list[float] = []

        def heard() -> bool:
            found.extend(
                each.at
                for each in self.listener.events[since:]
                if isinstance(each, QemuEvent)
                and (each.name, each.domain.name) == (event, domain.name)
            )
            return bool(found)

        await self.listener.wait(heard)
        return found[0]


def press_key(domain: DomainRef) -> requests.Request[None]:
    """Have a domain's key A pressed."""
    keys = pack_uint(0) + pack_uint(0) + pack_uint(1) + pack_uint(KEY_A) + pack_uint(0)
    return requests.Request("send key", SEND_KEY, domain.pack() + keys, requests.nothing)


def see_end(process: int) -> float:
    """Stand still until a process is gone, and return when that was."""
    found, _, _ = select.select([process], [], [], GONE_WITHIN)
    assert found, "it is not gone"
    return time.time()


@contextmanager
def bare(libvirtd: Libvirtd, directory: Path) -> Iterator[None]:
    """Have the least client run."""
    path = libvirtd.uri.partition("socket=")[2]
    command = [sys.executable, "-m", "tests.bench.bare", path, str(directory / "durable")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield
        finally:
            process.terminate()


async def restarts(subject: Subject, times: Times) -> None:
    """Measure one restart."""
    async with subject.domain("restart") as domain:
        mark = len(subject.listener.events)
        panicked = await subject.panic(domain, lambda: time.sleep(STANDS_STILL))
        for event in ("RESET", "RESUME"):
            times[subject.name, event].append(await subject.at(event, domain, mark) - panicked)


async def is_destroyed(subject: Subject, times: Times) -> None:
    """Measure one destroy."""
    async with subject.domain("destroy") as domain:
        run = Path(f"/proc/{subject.libvirtd.pid}/root/run/libvirt/qemu")
        process = os.pidfd_open(int((run / f"{domain.name}.pid").read_text()))
        gone: list[float] = []
        panicked = await subject.panic(domain, lambda: gone.append(see_end(process)))
        os.close(process)
        times[subject.name, "gone"].append(gone[0] - panicked)


async def measure(rounds: int, journal: str | None) -> Times:
    """Have all of them panic in turn, again and again."""
    times: Times = defaultdict(list)
    with (
        tempfile.TemporaryDirectory(prefix="panicd-") as one,
        tempfile.TemporaryDirectory(prefix="panicd-") as other,
        tempfile.TemporaryDirectory(prefix="panicd-") as place,
        Libvirtd.start(Path(one)) as own,
        Libvirtd.start(Path(other)) as shared,
        bare(own, Path(one)),
    ):
        config: dict[str, Any] = {
            "libvirt": {"uri": shared.uri},
            "monitors": [],
            "storm": "off",
            "domains": [{"match": "panicd-*", **NO_EVIDENCE}],
            **({"state_directory": journal} if journal else {}),
        }
        async with (
            connected(own.uri) as heard,
            connected(shared.uri) as heard_too,
            DaemonAsService.start(
                Path(other),
                {"restart": ENDLESS, **EVIDENCE},
                **config,
                time_limit=TIME_LIMIT * rounds,
            ) as daemon,
        ):
            subjects = [
                *(Subject(own, heard, Path(one), name, None) for name in ("libvirt", *BARE)),
                *(Subject(shared, heard_too, Path(place), name, daemon) for name in BY_PANICD),
            ]
            for measured in (restarts, is_destroyed):
                for _ in range(rounds):
                    for subject in subjects:
                        with trio.fail_after(TIME_LIMIT):
                            await measured(subject, times)
    return times


def show(times: Times) -> None:
    """Print the table."""
    print(f"load at the end: {os.getloadavg()[0]:.1f}")
    print("| ms after GUEST_PANICKED | event | median | least - most | of libvirt's own |")
    print("|---|---|---|---|---|")
    for (subject, event), taken in sorted(times.items(), key=lambda each: each[0][1]):
        own = times["libvirt", event]
        ratio = statistics.median(t / o for t, o in zip(taken, own, strict=True))
        least, most, median = (1e3 * f(taken) for f in (min, max, statistics.median))
        print(f"| {subject} | {event} | {median:.1f} | {least:.1f} - {most:.1f} | {ratio:.2f} |")


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--journal")
    options = parser.parse_args()
    print(f"load at the beginning: {os.getloadavg()[0]:.1f}, {os.cpu_count()} CPUs", flush=True)
    times = trio.run(measure, options.rounds, options.journal)
    show(times)


if __name__ == "__main__":
    main()
