"""What a command costs before it says its line: CPU time, user and system, beside virsh's.

python -m tests.bench.commands [--times N] [--domains N]

Bytecode is compiled before, as in a package: a shell may have told Python to keep none.
The daemon that is asked runs in a process of its own, on fake monitors, which are in this one.
"""

from __future__ import annotations

import argparse
import compileall
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import trio

from tests.parts.daemon import ExecutedDaemon
from tests.parts.fake import FakeQemu

MEASURE = "virsh --version"


def cpu_seconds(command: list[str]) -> float:
    """Return the CPU time that a command takes; none of this process's other children may end."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, command
    return usage.ru_utime + usage.ru_stime


def measure(config_file: Path, times: int) -> None:
    """Print the median of each, all taken in turn."""
    compileall.compile_dir(Path(sys.modules["panicd"].__path__[0]), quiet=1)
    panicd = str(Path(sys.executable).with_name("panicd"))
    asks = [panicd, "--config", str(config_file)]
    commands = {
        MEASURE: ["virsh", "--version"],
        "python -c pass": [sys.executable, "-c", "pass"],
        "python -c 'import click'": [sys.executable, "-c", "import click"],
        "panicd --help": [panicd, "--help"],
        "panicd status": [*asks, "status"],
        "panicd status --json": [*asks, "status", "--json"],
        "panicd incidents": [*asks, "incidents"],
    }
    took: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(times):
        for name, command in commands.items():
            took[name].append(cpu_seconds(command))
    measure = statistics.median(took[MEASURE])
    for name, seconds in took.items():
        median = statistics.median(seconds)
        print(f"{name:26} {median * 1000:6.1f} ms  {median / measure:5.2f} of {MEASURE}")


async def main(times: int, domains: int) -> None:
    """Start a daemon with its domains, and measure."""
    with tempfile.TemporaryDirectory(prefix="panicd-") as name:
        directory = Path(name)
        fakes = [FakeQemu(directory / f"vm-{n}.qmp", name=f"vm-{n}") for n in range(domains)]
        async with AsyncExitStack() as stack:
            for fake in fakes:
                await stack.enter_async_context(fake.running())
            daemon = await stack.enter_async_context(ExecutedDaemon.start(directory))
            for fake in fakes:
                await daemon.wait_armed(fake.machine.name)
            await trio.to_thread.run_sync(partial(measure, daemon.config_file, times))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=20, help="of each")
    parser.add_argument("--domains", type=int, default=8)
    options = parser.parse_args()
    trio.run(main, options.times, options.domains)
