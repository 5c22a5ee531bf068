"""How fast panicd reacts to a fleet's panics, beside three references in the same run.

    python -m tests.bench.fleet [--count N] [--rounds N] [--singles N] [--subjects A,B]

``fleet.c`` serves N monitors, some to a process, and measures from the moment before a panic's
event is written to the first ``system_reset`` that it reads from the same socket. ``floor``
(``floor.c``) is the least that any program can do, ``plain`` (``plain.py``) the least with qemu.qmp
on asyncio, ``durable`` (``durable.py``) the least with panicd's questions and a commit. ``panicd``
runs as shipped: durable journal, metrics, logs to a file; with the evidence budget at 0 and at its
default.
All take their turns in each round, so that what else the machine does falls on all alike.

Everything is on unix sockets in a temporary directory, and ends with this program.
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.parts.vitals import cpu_seconds, resident_bytes

HERE = Path(__file__).parent
PANICD = {
    "panicd": ({"budget": "0s"}, "memory"),
    "panicd, evidence": ({}, "memory"),
    "panicd, disk first": ({"budget": "0s"}, "disk"),
}
IN_MEMORY = "/dev/shm"  # noqa: S108 - a tmpfs on any Linux, as /run is on a host
REFERENCES = ("floor", "plain", "durable")
LAST_QUESTION = "query-dump-guest-memory-capability"
IDLE = 10.0
"""Seconds over which the CPU time of an idle one is taken."""


AFTERWARDS = 3.0
"""Seconds in which what was put off until after the commands is done."""


IN_A_PROCESS = 40
"""Machines: so many descriptors as a QEMU has, which panicd looks through."""


class Fleet:
    """The servers: processes that are told what to do, a line at a time."""

    def __init__(self, program: Path, directory: Path, count: int) -> None:
        self._firsts = range(0, count, IN_A_PROCESS)
        self._count = count
        self._processes = [
            subprocess.Popen(
                [program, directory, str(first), str(min(IN_A_PROCESS, count - first))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for first in self._firsts
        ]
        for process in self._processes:
            _read(process)

    def ask(self, command: str) -> dict[str, Any]:
        """Have them do something, and return what they say of it, put together."""
        what, *rest = command.split()
        told = [(process, command) for process in self._processes]
        if what == "panic":
            first, count = map(int, rest)
            told = [
                (process, f"panic {begin - at} {end - begin}")
                for at, process in zip(self._firsts, self._processes, strict=True)
                if (begin := max(at, first)) < (end := min(at + IN_A_PROCESS, first + count))
            ]
        for process, line in told:
            assert process.stdin is not None
            process.stdin.write(f"{line}\n")
            process.stdin.flush()
        answers = [_read(process) for process, _ in told]
        if what == "drop":
            return {}
        began, ended = min(a["began"] for a in answers), max(a["ended"] for a in answers)
        return {
            "seconds": ended - began,
            "cpu": sum(answer["cpu"] for answer in answers),
            "microseconds": [each for a in answers for each in a.get("microseconds", ())],
        }

    def end(self) -> None:
        """End them, and with them all their connections."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._processes:
            process.wait(10)

    def kill(self) -> None:
        """End them at once, as a power cut would: their sockets' files stay."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait(10)

    def freeze(self) -> None:
        """Stop them in their tracks; their connections stay, and nobody answers."""
        for process in self._processes:
            process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Have them go on."""
        for process in self._processes:
            process.send_signal(signal.SIGCONT)


def _read(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    answer = json.loads(process.stdout.readline())
    assert isinstance(answer, dict)
    return answer


@dataclass
class Figures:
    """What was measured of one subject; times in seconds, memory in bytes."""

    attached: list[float] = field(default_factory=list)
    singles: list[float] = field(default_factory=list)
    last_of_all: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    own_share: list[float] = field(default_factory=list)
    idle: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000, help="of domains")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--singles", type=int, default=200, help="single panics in each round")
    parser.add_argument("--subjects", default=",".join((*REFERENCES, *PANICD)).replace(", ", "; "))
    options = parser.parse_args()
    subjects = [name.replace("; ", ", ") for name in options.subjects.split(",")]
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    figures: dict[str, Figures] = defaultdict(Figures)
    with (
        tempfile.TemporaryDirectory(prefix="panicd-") as directory,
        tempfile.TemporaryDirectory(prefix="panicd-", dir=IN_MEMORY) as options.runtime,
    ):
        for source in ("fleet", "floor"):
            compile_program(HERE / f"{source}.c", Path(directory, source))
        for number in range(options.rounds):
            for name in subjects:
                place = Path(directory, f"{number}-{subjects.index(name)}")
                place.mkdir()
                measure(Path(directory), place, name, options, figures[name])
    show(figures, options.count)


def compile_program(source: Path, target: Path) -> None:
    """Compile a C program."""
    subprocess.run(["cc", "-O2", "-o", target, source], check=True)


def measure(
    programs: Path, directory: Path, name: str, options: argparse.Namespace, figures: Figures
) -> None:
    """Take one round of one subject's figures."""
    count: int = options.count
    fleet = Fleet(programs / "fleet", directory, count)
    with ExitStack() as stack:
        stack.callback(fleet.end)
        process = stack.enter_context(run_subject(programs, directory, name, options))
        last = LAST_QUESTION if name in PANICD else "set-action"
        figures.attached.append(fleet.ask(f"heard {last}")["seconds"])
        time.sleep(1.0)  # what starting leaves to be done is not measured
        before = cpu_seconds(process.pid)
        time.sleep(IDLE)
        figures.idle.append((cpu_seconds(process.pid) - before) / IDLE)
        for number in range(options.singles):
            (took,) = fleet.ask(f"panic {number * 7 % count} 1")["microseconds"]
            figures.singles.append(took / 1e6)
            time.sleep(0.005)
        before = cpu_seconds(process.pid)
        everything = fleet.ask(f"panic 0 {count - 1}")  # all of them would be a storm
        figures.last_of_all.append(max(everything["microseconds"]) / 1e6)
        figures.own_share.append(everything["cpu"] / everything["seconds"])
        figures.memory.append(resident_bytes(process.pid))
        time.sleep(AFTERWARDS)
        figures.cpu.append((cpu_seconds(process.pid) - before) / count)


@contextmanager
def run_subject(
    programs: Path, directory: Path, name: str, options: argparse.Namespace
) -> Iterator[subprocess.Popen[bytes]]:
    """Run what is measured, on the monitors in a directory."""
    command: Sequence[str | Path]
    if name == "floor":
        command = [programs / "floor", directory, str(options.count)]
    elif name in REFERENCES:
        command = [sys.executable, "-m", f"tests.bench.{name}", directory, str(options.count)]
    else:
        config = configure(directory, Path(options.runtime, "control.sock"), name)
        command = [sys.executable, "-m", "panicd", "--config", config, "run"]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(60)


def configure(directory: Path, control_socket: Path, name: str) -> Path:
    """Write panicd's configuration."""
    file = directory / "panicd.yaml"
    evidence, first = PANICD[name]
    defaults = {
        "on_crash": "restart",
        "restart": {"max": 1_000_000, "window": "1h", "min_uptime": "0s"},
        "evidence": evidence,
    }
    configuration = {
        "monitors": [{"glob": str(directory / "*.qmp")}],
        "metrics": {"listen": "127.0.0.1:0"},
        "state_directory": str(directory / "state"),
        "control_socket": str(control_socket),
        "journal": {"before_action": first},
        "storm": {"share": "100%", "window": "1s"},
        "defaults": defaults,
    }
    file.write_text(yaml.safe_dump(configuration))
    return file


def show(figures: dict[str, Figures], count: int) -> None:
    """Print the table."""
    print(
        f"| {count} domains | single p50 ms | p99 ms | all at once, last, ms (spread) "
        "| CPU ms a panic | attached s | idle, % of a core | MB | the fleet's own share |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name, of in figures.items():
        singles = sorted(of.singles)
        last = [f"{1e3 * took:.0f}" for took in sorted(of.last_of_all)]
        print(
            f"| {name} | {1e3 * statistics.median(singles):.2f} "
            f"| {1e3 * singles[int(len(singles) * 0.99)]:.2f} "
            f"| {1e3 * statistics.median(of.last_of_all):.0f} ({last[0]}-{last[-1]}) "
            f"| {1e3 * statistics.median(of.cpu):.2f} "
            f"| {statistics.median(of.attached):.2f} "
            f"| {100 * statistics.median(of.idle):.2f} "
            f"| {statistics.median(of.memory) / 1e6:.0f} "
            f"| {100 * statistics.median(of.own_share):.0f} % |"
        )


if __name__ == "__main__":
    main()
