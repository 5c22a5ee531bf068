"""How long the evidence of a real Linux kernel's panic takes, before its policy is carried out.

    python -m tests.bench.evidence [--panics N] [--noise N]

A guest with a screen panics, is restarted, boots and panics again. Told is the time of the step
that takes the evidence, by panicd's own log, and how many lines of the kernel's log were kept. The
machine is QEMU's, under TCG.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from functools import partial
from pathlib import Path

import trio

from tests.parts.daemon import RunningDaemon
from tests.parts.linux import Trouble, find_kernel, linux_guest

A_PANIC = 120.0
"""Seconds that a guest may take from its boot to its end."""

ENDLESS = {"max": 999_999, "window": "1h", "min_uptime": "0s"}
BUDGET = "10s"


def main() -> None:
    """Measure, and print a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--panics", type=int, default=10)
    parser.add_argument("--noise", type=int, default=150, help="lines that the guest logs itself")
    options = parser.parse_args()
    print(f"load at the beginning: {os.getloadavg()[0]:.1f}, {os.cpu_count()} CPUs")
    with tempfile.TemporaryDirectory(prefix="panicd-") as directory:
        took, lines = trio.run(partial(measure, Path(directory), options))
    print(f"load at the end: {os.getloadavg()[0]:.1f}")
    milliseconds = sorted(1000 * seconds for seconds in took)
    print(
        f"{len(took)} panics: median {statistics.median(milliseconds):.1f} ms, "
        f"{milliseconds[0]:.1f} to {milliseconds[-1]:.1f}; lines of the kernel's log: {lines}"
    )


async def measure(directory: Path, options: argparse.Namespace) -> tuple[list[float], int]:
    """Return the seconds that each panic's evidence took, and the lines of the last one's log."""
    policy = {"on_crash": "restart", "restart": ENDLESS, "evidence": {"budget": BUDGET}}
    noise = f"i=0; while [ $i -lt {options.noise} ]; do echo noise $i >/dev/kmsg; i=$((i+1)); done"
    trouble = Trouble(then=f"{noise}; {Trouble().then}")
    took = []
    async with (
        RunningDaemon.start(directory, policy, time_limit=A_PANIC * options.panics) as daemon,
        linux_guest(directory, find_kernel(), screen=True, trouble=trouble),
    ):
        for _ in range(options.panics):
            mark = daemon.mark()
            incident = await daemon.wait_incident("linux", ending="restarted", since=mark)
            record = await daemon.call("incident", incident=incident.id)
            (step,) = (each for each in record["steps"] if each["step"] == "Collect")
            took.append(step["ended_at"] - step["begun_at"])
        kept = trio.Path(record["evidence_directory"], "kernel.log")
        lines = (await kept.read_text(errors="replace")).splitlines()
    return took, len(lines)


if __name__ == "__main__":
    main()
