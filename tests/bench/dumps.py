"""How fast memory is dumped: panicd's formats, and QEMU's own dumps to a file, in the same run.

    python -m tests.bench.dumps [--memory MiB] [--rounds N] [--directory WHERE]

Each guest's memory is filled with one kind of content. Every figure is of guest memory, in MiB a
second until the file is durable (fsync(2)), and the median of the rounds; QEMU's own dumps are made
durable by this program. The rounds go through all of them in turn, so that what else the machine
does falls on all alike.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from unittest.mock import patch

import trio

from panicd.dumps import coredump
from panicd.dumps.coredump import dump_guest_memory
from panicd.dumps.page_selection import PageSelection
from panicd.dumps.standby import DumpHost, Standby
from panicd.qemu.monitor import event_loop
from panicd.qemu.session import Session
from panicd.rules.qapi import RunState
from panicd.rules.settings import CoredumpSettings, DumpFormat, FreeSpaceFloor
from tests.dumps.test_coredump import session_with
from tests.parts.qemu import RealQemu

MIB = 1 << 20
PAUSE = 0.3
"""Seconds before each dump: as long as after a panic, by when a filter stands by again."""
OWN = ("elf", "kdump-zlib")
MADE = (
    (DumpFormat.ELF, 0),
    (DumpFormat.ELF, 1),
    (DumpFormat.ELF_ZSTD, 0),
    (DumpFormat.ELF_ZSTD, 1),
    (DumpFormat.KDUMP_ZLIB, 1),
)
"""Formats and levels; the others leave out what a Linux tells of, and these guests are none."""
ROM_SIZE = 1 << 16
TO_64_BITS = bytes.fromhex(
    "fa31c08ec066bf001000000f22df6631c066b9000c000066f3ab2666c70600100320000026"
    "66c7060020033000002666c7060030830000000f20e06683c8200f22e066b9800000c00f32"
    "660d000100000f300f20c0660d010000800f22c0ba0505b001eef4"
)
"""Machine code that maps 2 MiB, switches a processor to 64 bits, panics and halts."""
SHARES = {
    "zeros": (0.0, 0.0),
    "files": (0.6, 0.1),  # a guest whose memory is mostly its page cache
    "noise": (0.0, 1.0),
}
"""Which shares of the memory hold files and noise; the rest is zeros."""


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory", type=int, default=1024, help="of a guest, in MiB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    print("| memory | dump | MiB/s | file, share of the memory |")
    print("|---|---|---|---|")
    for content in SHARES:
        with tempfile.TemporaryDirectory(prefix="panicd-", dir=options.directory) as directory:
            run = partial(measure, Path(directory), content, options.memory, options.rounds)
            with Standby() as standby:
                figures = trio.run(run, standby)
            for name, seconds, size in figures:
                share = size / MIB / options.memory
                print(f"| {content} | {name} | {options.memory / seconds:.0f} | {share:.3f} |")


async def measure(
    directory: Path, content: str, memory: int, rounds: int, standby: Standby
) -> list[tuple[str, float, int]]:
    """Return the name of each dump, the seconds that it took, and its size."""
    image = Path("/dev/shm") / directory.name  # noqa: S108 - where else is memory a file
    extra: tuple[str, ...] = ("-m", f"{memory}M")
    if any(SHARES[content]):  # others are as they are: a file's memory may have been written
        write_memory(image, content, memory * MIB)
        backend = f"memory-backend-file,id=ram,size={memory}M,mem-path={image},share=off"
        extra += ("-machine", "memory-backend=ram", "-object", backend)
    taken: dict[str, list[float]] = defaultdict(list)
    sizes = {}
    try:
        rom = directory / "rom"
        rom.write_bytes(TO_64_BITS.ljust(ROM_SIZE - 16, b"\xf4") + bytes.fromhex("ea000000f0") * 4)
        os.truncate(rom, ROM_SIZE)
        async with (
            event_loop(),
            RealQemu.start(
                directory, guest=None, paused=True, extra=(*extra, "-bios", str(rom))
            ) as vm,
            session_with(vm) as session,
        ):
            standby.want()
            await session.execute("cont")
            await session.observe(lambda: session.run_state is RunState.GUEST_PANICKED, 60.0)
            dumps: Mapping[str, Callable[[], Awaitable[Path]]] = {
                f"QEMU's own {kind}": partial(dump_by_qemu, vm, directory, kind) for kind in OWN
            } | {
                f"panicd's {kind}, level {level}": partial(
                    dump, session, directory, kind, level, standby
                )
                for kind, level in MADE
            }
            for _ in range(rounds):
                for name, make in dumps.items():
                    await trio.sleep(PAUSE)
                    began = time.perf_counter()
                    path = await make()
                    taken[name].append(time.perf_counter() - began)
                    sizes[name] = path.stat().st_size
                    path.unlink()
    finally:
        image.unlink(missing_ok=True)
    return [(name, statistics.median(taken[name]), sizes[name]) for name in taken]


async def dump_by_qemu(vm: RealQemu, directory: Path, kind: str) -> Path:
    """Have QEMU dump to a file that it opens, and make that durable."""
    path = directory / f"qemu.{kind}"
    mark = vm.witness.mark()
    arguments = {"paging": False, "protocol": f"file:{path}", "format": kind, "detach": True}
    await vm.witness.execute("dump-guest-memory", arguments)
    event = await vm.wait_event("DUMP_COMPLETED", since=mark)
    assert event["data"]["result"]["status"] == "completed"
    with path.open("rb") as file:
        await trio.to_thread.run_sync(os.fsync, file.fileno())
    return path


async def dump(
    session: Session, directory: Path, kind: DumpFormat, level: int, standby: Standby
) -> Path:
    """Have panicd dump."""
    settings = CoredumpSettings(directory / "coredumps", min_free=FreeSpaceFloor(), level=level)
    with patch.object(coredump, "selected_pages", taken_for_linux):
        host = DumpHost(standby=standby)
        return (await dump_guest_memory(session, settings, "vm", kind, kind, host=host)).path


@asynccontextmanager
async def taken_for_linux(*_: object) -> AsyncIterator[PageSelection]:
    """What makes a kdump of any guest of 64 bits, with all of its pages."""
    yield PageSelection(1)


def write_memory(image: Path, content: str, size: int) -> None:
    """Write a file of that size for a guest's memory."""
    files, noise = (int(size * share) for share in SHARES[content])
    with image.open("wb") as file:
        for piece in pieces_of_files(files):
            file.write(piece)
        for _ in range(noise // MIB):
            file.write(os.urandom(MIB))
        file.truncate(size)


def pieces_of_files(size: int) -> Iterator[bytes]:
    """Yield what this machine's programs and libraries hold, up to so many bytes."""
    for path in sorted(Path("/usr").rglob("*")):
        if size <= 0:
            return
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()[:size]
            content += bytes(-len(content) % 4096)  # as in the page cache
            size -= len(content)
            yield content


if __name__ == "__main__":
    main()
