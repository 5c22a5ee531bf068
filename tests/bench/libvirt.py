"""How soon a panicked guest of a real QEMU is acted on, by libvirt and by panicd in turn.

    python -m tests.bench.libvirt [--rounds N]

Told is the time from GUEST_PANICKED's own timestamp to those of RESET and RESUME (``restart``) and
of SHUTDOWN (``destroy``), all of them QEMU's, so that nobody's reading of them counts. ``libvirt``:
its domain, and nobody else. ``panicd``: a QEMU that libvirt does not run. ``panicd, by libvirt``:
libvirt's domain, which panicd reaches by libvirt alone; ``beside libvirt``: which has a monitor for
panicd as well. panicd takes no evidence here, as libvirt does not. The libvirtd is one with its own
files, as in ``tests/parts/libvirt.py``: it takes root.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from panicd.demo.guests import Guest
from panicd.demo.qemu import Watched
from tests.parts.daemon import ExecutedDaemon
from tests.parts.libvirt import Libvirtd
from tests.parts.qemu import RealQemu

TIME_LIMIT = 120.0
"""Seconds that one guest's panics may take."""

ENDLESS = {"max": 999_999, "window": "1h", "min_uptime": "0s"}
SUBJECTS = ("libvirt", "panicd, by libvirt", "panicd, beside libvirt", "panicd")
FOLLOWS = {"restart": ("RESET", "RESUME"), "destroy": ("SHUTDOWN",)}


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    print(f"load at the beginning: {os.getloadavg()[0]:.1f}, {os.cpu_count()} CPUs")
    with (
        tempfile.TemporaryDirectory(prefix="panicd-") as directory,
        Libvirtd.start(Path(directory)) as libvirtd,
    ):
        for _ in range(options.rounds):
            for subject in SUBJECTS:
                for policy in FOLLOWS:
                    trio.run(measure, libvirtd, subject, policy, times)
    print(f"load at the end: {os.getloadavg()[0]:.1f}")
    print("| ms after GUEST_PANICKED | event | median | least - most |")
    print("|---|---|---|---|")
    for (subject, event), taken in times.items():
        least, most = 1e3 * min(taken), 1e3 * max(taken)
        median = 1e3 * statistics.median(taken)
        print(f"| {subject} | {event} | {median:.1f} | {least:.1f} - {most:.1f} |")


async def measure(
    libvirtd: Libvirtd, subject: str, policy: str, times: dict[tuple[str, str], list[float]]
) -> None:
    """Have one guest panic, and note when what followed came."""
    with tempfile.TemporaryDirectory(prefix="panicd-") as place, trio.fail_after(TIME_LIMIT):
        async with acted_on(libvirtd, Path(place), subject, policy) as vm:
            mark = vm.witness.mark()
            await vm.press_key()
            panicked = at(await vm.wait_event("GUEST_PANICKED", since=mark))
            for name in FOLLOWS[policy]:
                event = await vm.wait_event(name, since=mark)
                times[subject, name].append(at(event) - panicked)


def at(event: dict[str, Any]) -> float:
    """Return when an event came about, by QEMU's own word; seconds since the epoch."""
    stamp = event["timestamp"]
    return float(stamp["seconds"]) + float(stamp["microseconds"]) / 1e6


@asynccontextmanager
async def acted_on(
    libvirtd: Libvirtd, directory: Path, subject: str, policy: str
) -> AsyncIterator[Watched]:
    """Run a guest that panics on a key, and who is to act on that."""
    defaults = {"on_crash": policy, "restart": ENDLESS, "evidence": {"budget": "0s"}}
    if subject == "libvirt":
        async with libvirtd.domain(directory, policy) as vm:
            yield vm
    elif subject == "panicd":
        async with (
            RealQemu.start(directory, accel="tcg", guest=Guest.PANIC_ON_KEY) as qemu,
            ExecutedDaemon.start(directory, defaults, time_limit=TIME_LIMIT) as daemon,
        ):
            await daemon.wait_armed("vm")
            yield qemu
    else:
        config: dict[str, Any] = {"libvirt": {"uri": libvirtd.uri}}
        if subject == "panicd, by libvirt":
            config["monitors"] = []
        async with (
            libvirtd.domain(directory, policy) as vm,
            ExecutedDaemon.start(directory, defaults, **config, time_limit=TIME_LIMIT) as daemon,
        ):
            await daemon.wait_armed("vm")
            yield vm


if __name__ == "__main__":
    main()
