"""How soon a real QEMU is acted on: by panicd on a monitor of its own, and by libvirt itself.

    python -m tests.bench.own_monitor [--rounds N]

Both guests are the same, emulated (``tcg``), and take turns, so that both meet the same machine.
Told is what ``tests.bench.libvirt`` tells, by QEMU's own timestamps. panicd takes no evidence, as
libvirt keeps none; its journal is durable. It takes root.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from panicd.demo.guests import Guest
from panicd.demo.qmp import Message
from tests.bench.libvirt import (
    ENDLESS,
    NO_EVIDENCE,
    STANDS_STILL,
    TIME_LIMIT,
    Subject,
    Times,
    see_end,
    show,
)
from tests.bench.libvirt import is_destroyed as is_destroyed_by_libvirt
from tests.bench.libvirt import restarts as restarts_by_libvirt
from tests.parts.daemon import ExecutedDaemon
from tests.parts.libvirt import Libvirtd
from tests.parts.libvirt_client import connected
from tests.parts.qemu import RealQemu

OWN = "own monitor"


def at(event: Message) -> float:
    """Return when an event came about, by QEMU's word; seconds since the epoch."""
    stamp = event["timestamp"]
    return float(stamp["seconds"] + stamp["microseconds"] / 1e6)


@asynccontextmanager
async def guest(directory: Path, daemon: ExecutedDaemon, name: str) -> AsyncIterator[RealQemu]:
    """Have a guest that is about to panic, on a key."""
    async with RealQemu.start(
        directory, guest=Guest.PANIC_ON_KEY, name=name, accel="tcg", extra=("-no-shutdown",)
    ) as vm:
        await daemon.wait_armed(name)
        yield vm


async def restarts(directory: Path, daemon: ExecutedDaemon, number: int, times: Times) -> None:
    """Measure one restart."""
    async with guest(directory, daemon, f"restart-{number}") as vm:
        mark = vm.witness.mark()
        await vm.hmp("sendkey a")
        time.sleep(STANDS_STILL)  # noqa: ASYNC251 - that nothing else runs is the purpose
        panicked = at(await vm.wait_event("GUEST_PANICKED", since=mark))
        for event in ("RESET", "RESUME"):
            times[OWN, event].append(at(await vm.wait_event(event, since=mark)) - panicked)


async def is_destroyed(directory: Path, daemon: ExecutedDaemon, number: int, times: Times) -> None:
    """Measure one destroy."""
    async with guest(directory, daemon, f"destroy-{number}") as vm:
        process = os.pidfd_open(vm.pid)
        await vm.hmp("sendkey a")
        gone = see_end(process)
        times[OWN, "gone"].append(gone - at(await vm.wait_event("GUEST_PANICKED")))
        os.close(process)


async def measure(rounds: int) -> Times:
    """Have both panic in turn, again and again."""
    times: Times = defaultdict(list)
    with (
        tempfile.TemporaryDirectory(prefix="panicd-") as one,
        tempfile.TemporaryDirectory(prefix="panicd-") as other,
        Libvirtd.start(Path(one)) as libvirtd,
    ):
        place = Path(other)
        domains = [{"match": "destroy-*", "on_crash": "destroy"}]
        policy = {"on_crash": "restart", "restart": ENDLESS, **NO_EVIDENCE}
        async with (
            connected(libvirtd.uri) as heard,
            ExecutedDaemon.start(
                place, policy, domains=domains, storm="off", time_limit=TIME_LIMIT * rounds
            ) as daemon,
        ):
            libvirt = Subject(libvirtd, heard, Path(one), "libvirt", None)
            for number in range(rounds):
                with trio.fail_after(TIME_LIMIT):
                    await restarts_by_libvirt(libvirt, times)
                    await restarts(place, daemon, number, times)
            for number in range(rounds):
                with trio.fail_after(TIME_LIMIT):
                    await is_destroyed_by_libvirt(libvirt, times)
                    await is_destroyed(place, daemon, number, times)
    return times


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    print(f"load at the beginning: {os.getloadavg()[0]:.1f}, {os.cpu_count()} CPUs", flush=True)
    show(trio.run(measure, options.rounds))


if __name__ == "__main__":
    main()
