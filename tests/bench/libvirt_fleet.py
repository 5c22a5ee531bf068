"""Many domains of one libvirt, which panicd reaches by libvirt alone, and which panic at once.

    python -m tests.bench.libvirt_fleet [--real N] [--fake N]

The real ones are QEMUs of 32 MiB that a real libvirtd runs (it takes root); the fake ones those of
one that runs nothing (``tests/parts/fake_libvirtd.py``). Half of them are to be restarted, half
destroyed. Told is how long it takes from panicd's start until it looks after all of them, what it
costs while nothing happens, and when the last is dealt with after the first has panicked.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from panicd.demo.guests import Guest
from tests.parts.daemon import ExecutedDaemon
from tests.parts.fake_libvirtd import FakeDomain, FakeLibvirtd
from tests.parts.libvirt import Libvirtd
from tests.parts.vitals import cpu_seconds, resident_bytes

TIME_LIMIT: Final = 3600.0  # seconds
IDLE: Final = 20.0  # seconds
LOOK_EVERY: Final = 0.2  # seconds
POLICIES: Final = ("restart", "destroy")


@dataclass
class Fleet:
    """Domains that can be made to panic.

    Attributes:
        uri: of their libvirt.
        panic: has all of them panic.
    """

    uri: str
    panic: Callable[[], Awaitable[None]]


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--real", type=int, default=50)
    parser.add_argument("--fake", type=int, default=2000)
    options = parser.parse_args()
    print(f"load at the beginning: {os.getloadavg()[0]:.1f}, {os.cpu_count()} CPUs")
    print("| domains | looked after | CPU while idle | memory | all dealt with | endings |")
    print("|---|---|---|---|---|---|")
    if options.real:
        trio.run(measure, real, options.real)
    if options.fake:
        trio.run(measure, fake, options.fake)
    print(f"load at the end: {os.getloadavg()[0]:.1f}")


async def measure(fleet_of: Callable[[Path, int], Any], number: int) -> None:
    """Have a fleet looked after, and panic."""
    with tempfile.TemporaryDirectory(prefix="panicd-") as place, trio.fail_after(TIME_LIMIT):
        directory = Path(place)
        async with fleet_of(directory, number) as fleet:
            began = trio.current_time()
            async with ExecutedDaemon.start(
                directory,
                {"evidence": {"budget": "0s"}},
                libvirt={"uri": fleet.uri},
                monitors=[],
                storm="off",
                time_limit=TIME_LIMIT,
            ) as daemon:
                await until(lambda: looked_after(daemon), number)
                attached = trio.current_time() - began
                before = cpu_seconds(daemon.pid)
                await trio.sleep(IDLE)
                idle = (cpu_seconds(daemon.pid) - before) / IDLE
                began, before = trio.current_time(), cpu_seconds(daemon.pid)
                await fleet.panic()
                told = trio.current_time() - began
                await until(lambda: dealt_with(daemon), number)
                took, cpu = trio.current_time() - began, cpu_seconds(daemon.pid) - before
                memory = resident_bytes(daemon.pid) >> 20
                await daemon.kill()  # its log is long, and what nobody reads is dropped
                closed = [incident.closed for incident in daemon.journal()]
                endings = Counter(str(each.ending) if each else "open" for each in closed)
                print(
                    f"| {number} {fleet_of.__name__} | {attached:.1f} s | {100 * idle:.1f} % | "
                    f"{memory} MiB | {took:.1f} s ({told:.1f} s to have "
                    f"them panic), {cpu:.1f} s of CPU | "
                    f"{', '.join(f'{n} {ending}' for ending, n in endings.items())} |",
                    flush=True,
                )


async def until(count: Callable[[], Awaitable[float | None]], number: int) -> None:
    """Wait until so many are counted."""
    counted: float | None = 0
    while (counted or 0) < number:
        await trio.sleep(LOOK_EVERY)
        counted = await count()


async def looked_after(daemon: ExecutedDaemon) -> float:
    """Return how many domains are."""
    domains = (await daemon.call("status"))["domains"]
    return float(sum(each["connected"] for each in domains))


async def dealt_with(daemon: ExecutedDaemon) -> float:
    """Return how many incidents have ended."""
    panics = await daemon.metric("panicd_panics_total", source="event") or 0
    still_open = await daemon.metric("panicd_incidents_open")
    return panics - (0 if still_open is None else still_open)


@asynccontextmanager
async def real(directory: Path, number: int) -> AsyncIterator[Fleet]:
    """QEMUs that a real libvirtd runs."""
    names = [f"vm-{n:03}" for n in range(number)]
    with tempfile.TemporaryDirectory(prefix="panicd-") as place, Libvirtd.start(Path(place)) as own:
        async with AsyncExitStack() as stack:
            for n, name in enumerate(names):
                domain = own.plain_domain(directory, POLICIES[n % 2], name=name, guest=Guest.IDLE)
                await stack.enter_async_context(domain)

            async def panic() -> None:
                command = "qemu-monitor-command {} --hmp 'o /b 0x505 1'"
                await own.virsh("; ".join(command.format(name) for name in names))

            yield Fleet(own.uri, panic)


@asynccontextmanager
async def fake(directory: Path, number: int) -> AsyncIterator[Fleet]:
    """Domains of a libvirtd that runs nothing."""
    domains = [FakeDomain(f"vm-{n:04}", n + 1, on_crash=POLICIES[n % 2]) for n in range(number)]
    async with FakeLibvirtd.start(directory, *domains) as libvirtd:

        async def panic() -> None:
            for domain in domains:
                libvirtd.panic(domain.name)

        yield Fleet(libvirtd.uri, panic)


if __name__ == "__main__":
    main()
