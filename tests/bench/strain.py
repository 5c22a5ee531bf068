"""What a fleet's panics wait for while panicd does something else as well.

    python -m tests.bench.strain reload [--count N] [--times N]
    python -m tests.bench.strain load [--count N] [--memory MiB] [--rounds N] [--dump-only]
    python -m tests.bench.strain reconnects [--count N] [--times N]

``reload``: a configuration with an entry for each domain is put in force again and again, changed
each time. Told is how long that takes, and each turn of the event loop meanwhile that took long.
``load``: one domain after the other panics, in turn with nothing else going on, and with a scrape
every second, ``panicd status --watch`` open and a large guest being dumped, or only the last.
``reconnects``: all monitors hang up, and are connected again; told is what memory becomes of it.
The monitors are those of ``tests.bench.fleet``. panicd runs at the priority that panicd.service
gives it, for which this takes root and chrt(1).
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import trio
import yaml

from panicd.demo.guests import Guest
from panicd.service.control_client import call
from tests.bench import AS_THE_SERVICE
from tests.bench.dumps import MIB, SHARES, write_memory
from tests.bench.fleet import AFTERWARDS, HERE, LAST_QUESTION, Fleet, compile_program, configure
from tests.parts.qemu import RealQemu
from tests.parts.vitals import cpu_seconds, resident_bytes

PAUSE = 0.005
"""Seconds between two panics."""

SPELL = 10.0
"""Seconds for which panics are looked at quietly."""

BIG = "big"


def main() -> None:
    """Measure, and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["reload", "load", "reconnects"])
    parser.add_argument("--count", type=int, default=2000, help="of domains")
    parser.add_argument("--times", type=int, default=5, help="to reload, or to reconnect")
    parser.add_argument("--memory", type=int, default=8192, help="of the guest, in MiB")
    parser.add_argument("--content", choices=SHARES, default="files", help="of its memory")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--dump-only", action="store_true", help="beside the panics")
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with tempfile.TemporaryDirectory(prefix="panicd-") as name:
        directory = Path(name)
        compile_program(HERE / "fleet.c", directory / "fleet")
        match options.what:
            case "reload":
                reloads(directory, options)
            case "load":
                trio.run(load, directory, options)
            case _:
                reconnects(directory, options)


@contextmanager
def running(
    directory: Path, count: int, changed: dict[str, Any] | None = None
) -> Iterator[tuple[Fleet, subprocess.Popen[bytes]]]:
    """Run a fleet, and panicd on it, its turns observed; return when all are attached."""
    file = configure(directory, directory / "control.sock", "panicd")
    rewrite(file, changed or {})
    fleet = Fleet(directory / "fleet", directory, count)
    with ExitStack() as stack:
        stack.callback(fleet.end)
        arguments: Sequence[object] = ("--config", file, "run")
        module = ["-m", "tests.bench.turns", directory / "turns"]
        log = stack.enter_context((directory / "log").open("wb"))
        program = [*AS_THE_SERVICE, sys.executable, *map(str, [*module, *arguments])]
        process = subprocess.Popen(program, stderr=log)
        try:
            fleet.ask(f"heard {LAST_QUESTION}")
            time.sleep(AFTERWARDS)
            yield fleet, process
        finally:
            process.terminate()
            process.wait(60)


def rewrite(file: Path, changed: dict[str, Any]) -> None:
    """Change keys of a configuration file."""
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **changed}))


def turns(directory: Path, since: float) -> list[dict[str, Any]]:
    """Return the long turns since a time, the longest first."""
    every = [json.loads(line) for line in (directory / "turns").read_text().splitlines()]
    return sorted((t for t in every if t["at"] >= since), key=lambda t: -float(t["took"]))


def entries(count: int, most: int) -> dict[str, Any]:
    """Return a configuration's entries, one for each domain."""
    return {
        "domains": [
            {"match": f"vm-{number:05d}", "on_crash": "restart", "restart": {"max": most + number}}
            for number in range(count)
        ]
    }


def reloads(directory: Path, options: argparse.Namespace) -> None:
    """Reload, and print how long it took and the long turns meanwhile."""
    file, control = directory / "panicd.yaml", directory / "control.sock"
    with running(directory, options.count, entries(options.count, 1000)) as (_, process):
        print("| reload | until in force, s | CPU s | turns > 20 ms | longest turn |")
        print("|---|---|---|---|---|")
        for number in range(options.times):
            rewrite(file, entries(options.count, 1000 + number))
            at, began, used = time.time(), time.monotonic(), cpu_seconds(process.pid)
            call(control, "reload", timeout=60)
            took = time.monotonic() - began
            time.sleep(AFTERWARDS)
            used = cpu_seconds(process.pid) - used
            seen = turns(directory, at)
            stalls = sum(turn["took"] > 0.02 for turn in seen)
            print(
                f"| {number} | {took:.2f} | {used:.2f} | {stalls} "
                f"| {described(seen[0]) if seen else 'none of 5 ms'} |"
            )


def described(turn: dict[str, Any]) -> str:
    """Return in words what a turn was."""
    took, cpu, gc, longest = (1e3 * turn[key] for key in ("took", "cpu", "gc", "longest"))
    whose = turn["of"].rpartition(".")[2]
    return f"{took:.0f} ms, of it CPU {cpu:.0f}, cycles {gc:.0f}, one step {longest:.0f} ({whose})"


def reconnects(directory: Path, options: argparse.Namespace) -> None:
    """Hang up again and again, and print what panicd holds."""
    with running(directory, options.count) as (fleet, process):
        print("| reconnects of each domain | MB | files |")
        print("|---|---|---|")
        for number in range(options.times + 1):
            if number % max(1, options.times // 10) == 0:
                time.sleep(AFTERWARDS)
                files = len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
                print(
                    f"| {number} | {resident_bytes(process.pid) / 1e6:.1f} | {files} |", flush=True
                )
            fleet.ask("drop")
            fleet.ask(f"heard {LAST_QUESTION}")


async def load(directory: Path, options: argparse.Namespace) -> None:
    """Have guests panic in turn with and without other work, and print both spells' reactions."""
    count: int = options.count
    image = Path("/dev/shm") / directory.name  # noqa: S108 - where else is memory a file
    write_memory(image, options.content, int(options.memory) * MIB)
    extra = (
        *("-m", f"{options.memory}M", "-machine", "memory-backend=ram", "-object"),
        f"memory-backend-file,id=ram,size={options.memory}M,mem-path={image},share=off",
    )
    dump = {"format": "elf-zstd", "min_free": "1GiB", "keep": 1}
    rule = {"match": BIG, "on_crash": "coredump-restart", "coredump": dump}
    strained = "while dumping" if options.dump_only else "with all that"
    taken: dict[str, list[float]] = {"quiet": [], strained: []}
    try:
        async with RealQemu.start(directory, guest=Guest.PANIC_ON_KEY, name=BIG, extra=extra) as vm:
            with running(directory, count, {"domains": [rule]}) as (fleet, _):
                for _ in range(options.rounds):
                    end = time.monotonic() + SPELL
                    quiet = partial(panics, fleet, count, partial(is_over, end))
                    taken["quiet"] += await trio.to_thread.run_sync(quiet)
                    since = time.time()
                    mark = vm.witness.mark()
                    await vm.press_key()
                    with nullcontext() if options.dump_only else busy(directory):
                        dumped = threading.Event()
                        spell = partial(panics, fleet, count, dumped.is_set)
                        async with trio.open_nursery() as nursery:
                            nursery.start_soon(until_reset, vm, mark, dumped)
                            taken[strained] += await trio.to_thread.run_sync(spell)
                    for turn in turns(directory, since)[:3]:
                        print("a long turn of the event loop:", described(turn))
    finally:
        image.unlink()
    print("| | count | p50 ms | p99 ms | longest, ms |")
    print("|---|---|---|---|---|")
    for name, times in taken.items():
        *_, last = statistics.quantiles(times, n=100, method="inclusive")
        print(
            f"| {name} | {len(times)} | {1e3 * statistics.median(times):.2f} | {1e3 * last:.2f} "
            f"| {1e3 * max(times):.1f} |"
        )


def is_over(end: float) -> bool:
    """Whether a time has come."""
    return time.monotonic() >= end


async def until_reset(vm: RealQemu, mark: int, dumped: threading.Event) -> None:
    """Set an event when the large guest was dumped, and therefore reset."""
    began = time.monotonic()
    await vm.wait_event("RESET", since=mark)
    dumped.set()
    print(f"dumped in {time.monotonic() - began:.1f} s")


@contextmanager
def busy(directory: Path) -> Iterator[None]:
    """Scrape every second, and have ``status --watch`` open, while this lasts."""
    log = (directory / "log").read_text()
    port = re.findall(r"metrics are served.*?port['\"]?[=:] ?(\d+)", log)[-1]
    over = threading.Event()

    def scrape() -> None:
        while not over.wait(1.0):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
                assert len(answer.read()) > 1000

    scraper = threading.Thread(target=scrape)
    program = [sys.executable, "-m", "panicd", "--socket", str(directory / "control.sock")]
    watcher = subprocess.Popen(
        [*program, "status", "--watch"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    scraper.start()
    try:
        yield
    finally:
        over.set()
        scraper.join()
        watcher.terminate()
        watcher.wait()


def panics(fleet: Fleet, count: int, over: Any) -> list[float]:
    """Have one guest after the other panic; return the reactions' times, in seconds."""
    taken: list[float] = []
    while not over():
        (took,) = fleet.ask(f"panic {len(taken) * 7 % count} 1")["microseconds"]
        taken.append(took / 1e6)
        time.sleep(PAUSE)
    return taken


if __name__ == "__main__":
    main()
