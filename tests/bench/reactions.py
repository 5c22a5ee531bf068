"""How soon panicd reacts to other domains' panics while it dumps a large guest, and otherwise.

    python -m tests.bench.reactions [--memory MiB] [--format elf-zstd] [--rounds N] [--domains N]

One real QEMU is dumped; fake ones panic one after the other, and are restarted. Measured is the
time from the panic's event to the ``system_reset`` that panicd sends (asking QEMU what it is busy
with, and two durable writes to the journal, lie between), and the time that ``status`` takes. Quiet
spells and dumps take turns, so that what else the machine does falls on both. Journal and dump lie
on one disk.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import trio

from panicd.demo.guests import Guest
from panicd.rules.settings import DumpFormat
from tests.bench.dumps import MIB, SHARES, write_memory
from tests.parts.background import background
from tests.parts.daemon import ExecutedDaemon
from tests.parts.fake import FakeQemu
from tests.parts.qemu import RealQemu

QUIET: float = 20.0
"""Seconds of a quiet spell."""

ENDLESS = {"max": 999_999, "window": "1h", "min_uptime": "0s"}
BIG = "big"

Times = dict[str, list[float]]


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory", type=int, default=8192, help="of the guest, in MiB")
    parser.add_argument("--content", choices=SHARES, default="zeros", help="of its memory")
    parser.add_argument("--format", choices=[str(kind) for kind in DumpFormat], default="elf-zstd")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--domains", type=int, default=20, help="others, that panic")
    options = parser.parse_args()
    print(f"load at the beginning: {os.getloadavg()[0]:.1f}, {os.cpu_count()} CPUs")
    with tempfile.TemporaryDirectory(prefix="panicd-") as directory:
        times = trio.run(partial(measure, Path(directory), options))
    print(f"load at the end: {os.getloadavg()[0]:.1f}")
    print("| | count | median, ms | 99 %, ms | longest, ms |")
    print("|---|---|---|---|---|")
    for name, taken in times.items():
        milliseconds = [seconds * 1000 for seconds in taken]
        *_, last = statistics.quantiles(milliseconds, n=100, method="inclusive")
        print(
            f"| {name} | {len(taken)} | {statistics.median(milliseconds):.1f} | {last:.1f} "
            f"| {max(milliseconds):.1f} |"
        )


async def measure(directory: Path, options: argparse.Namespace) -> Times:
    """Return what was measured, by what it is, in seconds."""
    image = Path("/dev/shm") / directory.name  # noqa: S108 - where else is memory a file
    write_memory(image, options.content, options.memory * MIB)
    extra = (
        *("-m", f"{options.memory}M", "-machine", "memory-backend=ram"),
        "-object",
        f"memory-backend-file,id=ram,size={options.memory}M,mem-path={image},share=off",
    )
    dump = {"format": options.format, "min_free": "1GiB", "keep": 1}
    policy = {"on_crash": "restart", "restart": ENDLESS, "coredump": dump}
    domains = [{"match": BIG, "on_crash": "coredump-restart"}]
    fakes = [FakeQemu(directory / f"vm-{n}.qmp", name=f"vm-{n}") for n in range(options.domains)]
    times: Times = defaultdict(list)
    try:
        async with (
            ExecutedDaemon.start(
                directory, policy, domains=domains, storm="off", time_limit=3600
            ) as daemon,
            RealQemu.start(directory, guest=Guest.PANIC_ON_KEY, name=BIG, extra=extra) as vm,
            background() as nursery,
        ):
            await daemon.wait_armed(BIG)
            for fake in fakes:
                nursery.start_soon(fake.run)
                await daemon.wait_armed(fake.machine.name)
            for _ in range(options.rounds):
                end = time.monotonic() + QUIET
                await panics(daemon, fakes, times, "quiet", partial(time_is_over, end))
                mark = daemon.mark()
                await vm.press_key()
                await daemon.wait_log("step begins", step="Dump", domain=BIG, since=mark)
                began = time.monotonic()
                dumped = partial(dump_is_over, daemon, mark)
                await panics(daemon, fakes, times, "dump", dumped)
                (ended,) = daemon.logged("step ended", step="Dump", domain=BIG, since=mark)
                assert ended["outcome"] == "done", ended["detail"]
                print(f"dumped in {time.monotonic() - began:.1f} s")
                await daemon.wait_incident(BIG, ending="restarted", since=mark)
    finally:
        image.unlink()
    return times


def time_is_over(end: float) -> bool:
    """Whether a quiet spell is over."""
    return time.monotonic() >= end


def dump_is_over(daemon: ExecutedDaemon, mark: int) -> bool:
    """Whether the large guest's dump has ended."""
    return bool(daemon.logged("step ended", step="Dump", domain=BIG, since=mark))


async def panics(
    daemon: ExecutedDaemon,
    fakes: list[FakeQemu],
    times: Times,
    spell: str,
    over: Callable[[], bool],
) -> None:
    """Have one guest after the other panic until the spell is over."""
    while not over():
        for fake in fakes:
            mark = len(fake.calls)
            restarted = daemon.mark()
            fake.panic()
            times[f"{spell}: panic to reset"].append(
                await duration(fake.wait_command("system_reset", since=mark))
            )
            await daemon.wait_incident(fake.machine.name, ending="restarted", since=restarted)
            times[f"{spell}: status"].append(await duration(daemon.call("status")))
            if over():
                return


async def duration(done: Awaitable[object]) -> float:
    """Return how long something takes, in seconds."""
    began = time.perf_counter()
    await done
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
