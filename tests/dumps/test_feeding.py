"""Dumps for which only parts of a real QEMU's memory are read; and what goes wrong meanwhile."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import pytest
import trio
import trio.testing

from panicd.dumps import checks as dump_checks
from panicd.dumps import coredump
from panicd.dumps import writer as dump_writer
from panicd.dumps.coredump import DumpError, DumpFailure, DumpProgress, dump_guest_memory
from panicd.dumps.directory import Space
from panicd.dumps.feeding import feed_ranges
from panicd.dumps.page_selection import MAX_LENGTH, PageSelection
from panicd.evidence.bundle_store import allocated
from panicd.qemu.guest_memory import GuestReader, RangeReader
from panicd.qemu.monitor import SessionLostError, event_loop
from panicd.qemu.session import Session
from panicd.rules.guest_memory.memory import PAGE
from panicd.rules.guest_memory.reading import ReadRequest
from panicd.rules.qapi import RunState
from panicd.rules.settings import CoredumpSettings, DumpFormat, FreeSpaceFloor
from tests.bench.dumps import ROM_SIZE, TO_64_BITS
from tests.dumps.test_coredump import files, session_with
from tests.parts.background import background
from tests.parts.patience import fail_after, patience
from tests.parts.qemu import RealQemu
from tests.parts.small_disk import small_disk

pytestmark = pytest.mark.real

MIB = 1 << 20
NOISE = os.urandom(12 * MIB)
BLOCK = 16 * PAGE
KEPT = (range(MIB, 5 * MIB, BLOCK), range(9 * MIB, 12 * MIB, BLOCK))
"""What is kept: the last half of each block in these ranges."""
RANGES = tuple(ReadRequest(part.start, part.stop - part.start) for part in KEPT)
INCIDENT = "20260101T000000-abcd"


def bitmap() -> bytes:
    bits = bytearray(16 * MIB // PAGE // 8)
    for part in KEPT:
        for block in part:
            bits[block // PAGE // 8 + 1] = 0xFF
    return bytes(bits)


@asynccontextmanager
async def some_pages(
    reader: GuestReader, _level: int, _size: int, ranges: tuple[ReadRequest, ...] = RANGES
) -> AsyncIterator[PageSelection]:
    """What would be found of a Linux guest, of one that is none."""
    file = os.memfd_create("bitmap")
    try:
        os.write(file, bitmap())
        beginning = await reader.beginning()
        yield PageSelection(31, file, {"free": 2}, beginning=beginning, ranges=ranges)
    finally:
        os.close(file)


@asynccontextmanager
async def panicked_vm(directory: Path) -> AsyncIterator[tuple[RealQemu, Session]]:
    """A VM of 64 bits whose memory is full of noise."""
    noise, rom = directory / "noise", directory / "rom"
    noise.write_bytes(NOISE)
    rom.write_bytes(TO_64_BITS.ljust(ROM_SIZE - 16, b"\xf4") + bytes.fromhex("ea000000f0") * 4)
    os.truncate(rom, ROM_SIZE)
    extra = ("-bios", str(rom), "-device", f"loader,file={noise},addr={MIB:#x},force-raw=on")
    with fail_after(60):
        async with (
            event_loop(),
            RealQemu.start(directory, guest=None, paused=True, extra=extra) as vm,
            session_with(vm) as session,
        ):
            await session.execute("cont")
            await session.observe(lambda: session.run_state is RunState.GUEST_PANICKED, 60)
            yield vm, session


@pytest.fixture
def settings(socket_dir: Path) -> CoredumpSettings:
    return CoredumpSettings(socket_dir / "coredumps", min_free=FreeSpaceFloor(), level=31)


@pytest.fixture(autouse=True)
def taken_for_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coredump, "selected_pages", some_pages)


async def dump_fails(session: Session, settings: CoredumpSettings) -> DumpError:
    """Try a dump; see that nothing is left of it, and that QEMU does as it is told again."""
    with pytest.raises(DumpError) as caught:
        await dump_guest_memory(session, settings, "vm", INCIDENT, DumpFormat.KDUMP_ZLIB)
    assert files(settings.directory) == []
    await session.execute("cont")
    return caught.value


def before_a_range(
    monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], Awaitable[object]]
) -> None:
    """Have something happen right before the range of that number, from 1 on, is read."""
    read, count = RangeReader.range, 0

    @asynccontextmanager
    async def acting(self: RangeReader, request: ReadRequest) -> AsyncIterator[object]:
        nonlocal count
        count += 1
        if count == number:
            await act()
        async with read(self, request) as pieces:
            yield pieces

    monkeypatch.setattr(RangeReader, "range", acting)


async def test_what_is_kept_is_what_was_in_memory(
    socket_dir: Path, settings: CoredumpSettings
) -> None:
    progress = DumpProgress()
    async with panicked_vm(socket_dir) as (_, session):
        make = partial(dump_guest_memory, session, settings, "vm")
        made = await make(INCIDENT, DumpFormat.KDUMP_ZLIB, progress=progress)
    assert progress.total == sum(each.length for each in RANGES)
    assert progress.total < progress.received < progress.total + 64 * 1024
    assert progress.written == allocated(made.path.stat()) > 0
    content = made.path.read_bytes()
    for start in range(0, len(NOISE), BLOCK):  # it is stored as it is, for it does not compress
        is_read = any(MIB + start in part for part in KEPT)
        assert (NOISE[start + BLOCK // 2 : start + BLOCK] in content) is is_read
        assert NOISE[start : start + PAGE] not in content


async def test_long_ranges_come_whole(
    socket_dir: Path, settings: CoredumpSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_of_it = (ReadRequest(0, min(MAX_LENGTH, 16 * MIB)),)
    monkeypatch.setattr(coredump, "selected_pages", partial(some_pages, ranges=all_of_it))
    async with panicked_vm(socket_dir) as (_, session):
        made = await dump_guest_memory(session, settings, "vm", INCIDENT, DumpFormat.KDUMP_ZLIB)
    content = made.path.read_bytes()
    assert NOISE[BLOCK // 2 : BLOCK] in content
    assert NOISE[:PAGE] not in content


@pytest.mark.parametrize("act", ["system_reset", "cont"])
async def test_guest_that_is_let_go_between_two_ranges(
    socket_dir: Path, settings: CoredumpSettings, act: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with panicked_vm(socket_dir) as (vm, session):
        before_a_range(monkeypatch, 2, partial(vm.witness.execute, act))
        error = await dump_fails(session, settings)
    assert error.failure is DumpFailure.OVERTAKEN


async def test_range_that_qemu_refuses(
    socket_dir: Path, settings: CoredumpSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    beyond = (*RANGES, ReadRequest(1 << 40, PAGE))
    monkeypatch.setattr(coredump, "selected_pages", partial(some_pages, ranges=beyond))
    async with panicked_vm(socket_dir) as (_, session):
        error = await dump_fails(session, settings)
    assert error.failure is DumpFailure.QEMU
    assert "no guest memory" in str(error)


async def test_page_that_is_kept_and_not_read(
    socket_dir: Path, settings: CoredumpSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coredump, "selected_pages", partial(some_pages, ranges=RANGES[:1]))
    async with panicked_vm(socket_dir) as (_, session):
        error = await dump_fails(session, settings)
    assert "No data available" in str(error)


async def test_qemu_that_is_killed_between_two_ranges(
    socket_dir: Path, settings: CoredumpSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with panicked_vm(socket_dir) as (vm, session):

        async def kill() -> None:
            vm.kill()
            await vm.wait_exit()

        before_a_range(monkeypatch, 2, kill)
        with pytest.raises(SessionLostError):
            await dump_guest_memory(session, settings, "vm", INCIDENT, DumpFormat.KDUMP_ZLIB)
    assert files(settings.directory) == []


async def test_qemu_that_no_longer_answers(
    socket_dir: Path, settings: CoredumpSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with panicked_vm(socket_dir) as (vm, session):

        async def stop() -> None:
            os.kill(vm.pid, signal.SIGSTOP)
            await trio.lowlevel.checkpoint()

        before_a_range(monkeypatch, 2, stop)
        with pytest.raises(DumpError) as caught:
            await dump_guest_memory(
                session, replace(settings, timeout=2), "vm", INCIDENT, DumpFormat.KDUMP_ZLIB
            )
        os.kill(vm.pid, signal.SIGCONT)
    assert caught.value.failure is DumpFailure.TIMEOUT
    assert files(settings.directory) == []


@pytest.fixture(name="disk")
def small_disk_of_a_test(socket_dir: Path) -> Iterator[Path]:
    with small_disk(socket_dir, "2m") as disk:
        yield disk


async def test_disk_that_fills_up(
    socket_dir: Path,
    disk: Path,
    settings: CoredumpSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dump_writer, "space", lambda _file: Space(1 << 40, 1 << 40))
    async with panicked_vm(socket_dir) as (_, session):
        error = await dump_fails(session, replace(settings, directory=disk))
    assert error.failure is DumpFailure.NO_SPACE
    assert files(disk) == []


async def test_filter_that_is_killed(
    socket_dir: Path, settings: CoredumpSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []
    begun = threading.Event()

    class Popen(subprocess.Popen[bytes]):
        def __init__(self, *arguments: object, **keywords: object) -> None:
            super().__init__(*arguments, **keywords)  # type: ignore[call-overload] # as given
            started.append(self)
            begun.set()

    async def kill() -> None:
        await trio.to_thread.run_sync(begun.wait, patience(30))  # the writer's thread starts it
        started[-1].kill()

    async with panicked_vm(socket_dir) as (_, session):
        monkeypatch.setattr("panicd.dumps.writer.subprocess.Popen", Popen)
        before_a_range(monkeypatch, 2, kill)
        error = await dump_fails(session, settings)
    assert error.failure is DumpFailure.UNWRITABLE
    assert "the filter ended with status -9" in str(error)


async def test_only_what_is_read_needs_memory_of_the_host(
    socket_dir: Path, settings: CoredumpSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = sum(each.length for each in RANGES)
    monkeypatch.setattr(dump_checks, "_sum_of", lambda *_: 0)
    async with panicked_vm(socket_dir) as (_, session):
        monkeypatch.setattr(dump_checks, "_available", lambda: read - 1)
        assert (await dump_fails(session, settings)).failure is DumpFailure.NO_MEMORY
    monkeypatch.setattr(dump_checks, "_available", lambda: read)
    async with panicked_vm(socket_dir) as (_, session):
        await dump_guest_memory(session, settings, "vm", INCIDENT, DumpFormat.KDUMP_ZLIB)


class OneFile:
    """A reader whose ranges all lie in one file."""

    def __init__(self, file: int) -> None:
        self.file = file
        self.read = 0

    @asynccontextmanager
    async def range(self, request: ReadRequest) -> AsyncIterator[list[tuple[int, int, int]]]:
        await trio.lowlevel.checkpoint()
        self.read += 1
        yield [(self.file, 0, request.length)]


async def test_a_pipe_that_nobody_reads_leaves_no_file_open() -> None:
    reading, writing = os.pipe()
    file = os.memfd_create("ranges")
    os.truncate(file, 8 * MIB)
    one = OneFile(file)
    selection = PageSelection(31, file, {}, beginning=b"", ranges=RANGES * 4)
    async with trio.lowlevel.FdStream(writing) as pipe, background() as nursery:
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a number only
        done = trio.Event()

        async def feed() -> None:
            with pytest.raises(trio.BrokenResourceError):
                await feed_ranges(pipe, selection, cast("GuestReader", one), lambda: None)
            done.set()

        nursery.start_soon(feed)
        await trio.testing.wait_all_tasks_blocked()  # the pipe is full, and the next range waits
        assert one.read == 2
        os.close(reading)
        await done.wait()
        assert len(os.listdir("/proc/self/fd")) == before - 1  # noqa: PTH208 - a number only
    os.close(file)


async def test_memory_that_can_not_be_read_is_no_group_of_errors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is read of a file of QEMU's memory may fail as any file does."""

    def fails(*_arguments: object, **_more: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "splice", fails)
    reading, writing = os.pipe()
    file = os.memfd_create("ranges")
    one = OneFile(file)
    selection = PageSelection(31, file, {}, beginning=b"", ranges=RANGES)
    async with trio.lowlevel.FdStream(writing) as pipe:
        with pytest.raises(OSError, match="Input/output error"):
            await feed_ranges(pipe, selection, cast("GuestReader", one), lambda: None)
    os.close(reading)
    os.close(file)
