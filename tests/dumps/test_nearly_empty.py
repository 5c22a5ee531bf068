"""Guests of which the host holds next to nothing: an ELF core made of QEMU's kdump is the same."""

from __future__ import annotations

import errno
import io
import math
import os
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import trio
import trio.testing
from hypothesis import example, given
from hypothesis import strategies as st

from panicd.dumps import checks as dump_checks
from panicd.dumps import coredump, nearly_empty
from panicd.dumps import writer as dump_writer
from panicd.dumps.checks import GuestMemory, check_guest
from panicd.dumps.coredump import DumpProgress, dump_guest_memory
from panicd.dumps.facts import dump_facts
from panicd.dumps.filter import kdump_stream
from panicd.dumps.filter.kdump_stream import START, NotUnderstoodError, parts_of_core
from panicd.dumps.nearly_empty import NAMES, foretold, is_freed, send_ends, suits_kdump
from panicd.dumps.page_selection import PageSelection
from panicd.qemu import guest_memory
from panicd.qemu.dump_error import DumpError, DumpFailure
from panicd.qemu.guest_memory import RangeReader
from panicd.qemu.monitor import event_loop
from panicd.qemu.session import Session
from panicd.rules.guest_memory.memory import PAGE
from panicd.rules.guest_memory.reading import NotReadableError
from panicd.rules.settings import CoredumpSettings, DumpFormat, FreeSpaceFloor
from tests.dumps.page_guests import PageGuest
from tests.dumps.test_coredump import INCIDENT, elf_of, session_with, stopped_guest
from tests.dumps.test_coredump import NOISE as NOISE_OF_32_BITS
from tests.dumps.test_feeding import panicked_vm
from tests.dumps.test_page_filter import core
from tests.dumps.test_page_selection import Ranges
from tests.parts.patience import fail_after
from tests.parts.qemu import RealQemu

KINDS = [(DumpFormat.ELF, 1), (DumpFormat.ELF_ZSTD, 0), (DumpFormat.ELF_ZSTD, 1)]
EMPTY = bytes(PAGE)
NOISE = [os.urandom(PAGE) for _ in range(3)]
FULL = [b"a" * PAGE, b"\0" * (PAGE - 1) + b"b", *NOISE]
CACHE = 4 * PAGE  # bytes that QEMU gathers of descriptors, and of contents
EMPTY_DESCRIPTOR = struct.calcsize("<QIIQ")
GIB = 1 << 30
MOST = 1 << 20  # bytes that a core may have


def flat(pages: list[bytes], *, cache: int = CACHE) -> bytes:
    """A kdump of them, as QEMU writes it to a pipe."""
    blocks = (1, 2)  # of the second header, of the bitmaps
    head = struct.pack("<8sI", b"KDUMP   ", 6).ljust(428, b"\0")
    head += struct.pack("<III", PAGE, *blocks) + bytes(24)
    ends = [PAGE * (1 + sum(blocks))]
    ends.append(ends[0] + EMPTY_DESCRIPTOR * len(pages))
    empty_at = ends[1]
    at = empty_at + PAGE
    gathered = [bytearray(), bytearray(EMPTY)]
    pieces = [(0, head), (PAGE, b"a second header"), (2 * PAGE, b"\xff" * PAGE)]

    def pass_on(which: int) -> None:
        pieces.append((ends[which], bytes(gathered[which])))
        ends[which] += len(gathered[which])
        gathered[which].clear()

    def gather(which: int, data: bytes) -> None:
        if len(gathered[which]) + len(data) > cache:
            pass_on(which)
        gathered[which] += data

    for page in pages:
        packed = zlib.compress(page, 1)
        content, flags = (packed, 1) if len(packed) < PAGE else (page, 0)
        if page == EMPTY:
            gather(0, struct.pack("<QIIQ", empty_at, PAGE, 0, 0))
        else:
            gather(1, content)
            gather(0, struct.pack("<QIIQ", at, len(content), flags, 0))
            at += len(content)
    pass_on(0)
    pass_on(1)
    header = struct.pack(">16sQQ", b"makedumpfile", 1, 1).ljust(4096, b"\0")
    placed = [struct.pack(">qq", place, len(data)) + data for place, data in pieces]
    return b"".join((header, *placed, struct.pack(">qq", -1, -1)))


def beginning_of(pages: list[bytes]) -> bytes:
    half = len(pages) // 2
    whole = core((0, b"".join(pages[:half])), (4 * GIB, b"".join(pages[half:])))
    return whole[: len(whole) - PAGE * len(pages)]


def core_of(pages: list[bytes], kdump: bytes) -> bytes:
    """The core that is made of a kdump."""
    beginning = beginning_of(pages)
    start = START.pack(len(beginning), PAGE * len(pages), len(NAMES)) + beginning + NAMES
    parts = parts_of_core(io.BytesIO(start + kdump))
    return b"".join(bytes(part) if isinstance(part, int) else part for part in parts)


def written(pages: list[bytes]) -> bytes:
    return beginning_of(pages) + b"".join(pages) + NAMES


some_pages = st.lists(
    st.tuples(st.sampled_from([EMPTY, *FULL]), st.integers(1, 300)), min_size=1, max_size=12
).map(lambda runs: [page for page, count in runs for _ in range(count)])


@given(pages=some_pages, cache=st.sampled_from([PAGE, CACHE, 16 * CACHE]))
def test_a_core_is_made_of_a_kdump(pages: list[bytes], cache: int) -> None:
    assert core_of(pages, flat(pages, cache=cache)) == written(pages)


@given(pages=some_pages, data=st.data())
def test_of_a_broken_kdump_no_other_core_is_made(pages: list[bytes], data: st.DataObject) -> None:
    kdump = bytearray(flat(pages))
    at = data.draw(st.integers(0, len(kdump) - 1), label="at")
    match data.draw(st.sampled_from(["cut", "changed"])):
        case "cut":
            del kdump[at:]
        case _:
            kdump[at : at + 1] = data.draw(st.binary(min_size=1, max_size=1), label="byte")
    try:
        made = core_of(pages, bytes(kdump))
    except (NotUnderstoodError, OSError):
        return
    assert len(made) == len(written(pages))


@pytest.mark.parametrize(
    ("pages", "why"),
    [
        ([EMPTY] * 9, "more pages than the memory"),
        ([EMPTY] * 7, "not where it belongs"),
        ([*[EMPTY] * 7, b"a" * 100], "not packed as it should be"),
    ],
)
def test_a_kdump_of_another_memory_is_refused(pages: list[bytes], why: str) -> None:
    with pytest.raises(NotUnderstoodError, match=why):
        core_of([EMPTY] * 8, flat(pages))


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kdump_stream, "_MAX_WAITING", 10)
    pages = [FULL[0]] * 20
    with pytest.raises(NotUnderstoodError, match="do not belong together"):
        core_of(pages, flat(pages, cache=100 * PAGE))


def ends_of(foretold: bytes) -> tuple[bytes, int, bytes]:
    """What a core has before its memory, the memory's size, and what is behind it."""
    before, size, behind = START.unpack_from(foretold)
    ends = foretold[START.size :]
    assert len(ends) == before + behind
    return ends[:before], size, ends[before:]


def test_a_cores_ends_are_foretold() -> None:
    pages = [EMPTY] * 4
    assert ends_of(foretold(beginning_of(pages), MOST)) == (beginning_of(pages), 4 * PAGE, b"")


@pytest.mark.parametrize(
    ("beginning", "why"),
    [
        (beginning_of([EMPTY] * 4) + b"more", "behind its notes"),
        (core((4 * GIB, b""), (0, b"")), "order of addresses"),
        (b"no core".ljust(64), "not an ELF core"),
        (core((0, bytes(MOST)))[:-MOST], "more than the guest can have"),
    ],
)
def test_other_cores_are_not_foretold(beginning: bytes, why: str) -> None:
    with pytest.raises(NotReadableError, match=why):
        foretold(beginning, MOST)


QEMUS = (
    *struct.unpack("<16s", b"\x7fELF\x02\x01\x01".ljust(16, b"\0")),
    *(4, 62, 1, 0, 192, 64, 0, 8, 56, 2, 64, 2, 1),
)


def beginning_with_sections(at: int = 0, size: int = len(NAMES)) -> bytes:
    """What QEMU 7.2 writes before a core's memory: sections' headers come first."""
    notes_at = 192 + 2 * 56
    end = notes_at + 8 + 4 * PAGE
    return b"".join(
        (
            struct.pack("<16sHHIQQQIHHHHHH", *QEMUS),
            bytes(64),
            struct.pack("<II8x8xQQ24x", 1, 3, at or end, size),
            struct.pack("<IIQQQQQQ", 4, 0, notes_at, 0, 0, 8, 8, 0),
            struct.pack("<IIQQQQQQ", 1, 0, notes_at + 8, 0, 0, 4 * PAGE, 4 * PAGE, 0),
            b"the note",
        )
    )


def test_the_sections_names_are_foretold() -> None:
    before, _, behind = ends_of(foretold(beginning_with_sections(), MOST))
    assert behind == NAMES
    assert before[64 : 64 + 4] == struct.pack("<I", 4), "program headers come first now"
    assert len(before) == len(beginning_with_sections())


@pytest.mark.parametrize("changed", [{"at": 1000}, {"size": 12}])
def test_unknown_sections_are_not_foretold(changed: dict[str, int]) -> None:
    with pytest.raises(NotReadableError, match="sections that are not known"):
        foretold(beginning_with_sections(**changed), MOST)


@example(at=40, byte=255, cut=0, more=True)  # section headers that end behind it
@given(at=st.integers(0, 63), byte=st.integers(0, 255), cut=st.integers(0, 400), more=st.booleans())
def test_a_lying_qemu_has_nothing_foretold(at: int, byte: int, cut: int, more: bool) -> None:
    lie = bytearray(beginning_with_sections())
    lie[at] = byte
    with suppress(NotReadableError):
        foretold(bytes(lie if more else lie[:cut]), MOST)


@pytest.mark.parametrize(
    ("size", "touched", "is_it"),
    [(GIB, GIB // 32, True), (GIB, GIB // 16, False), (GIB, None, False), (None, 0, False)],
)
def test_nearly_empty_is_what_was_hardly_written(
    size: int | None, touched: int | None, is_it: bool
) -> None:
    assert GuestMemory(size, None, touched=touched).is_nearly_empty is is_it


# -- real QEMUs

real = pytest.mark.real


@pytest.fixture
def anything_is_nearly_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dump_checks, "NEARLY_EMPTY", 1000.0)


@pytest.fixture
def fail_kdumps(
    own_program: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> Callable[[int], None]:
    """Makes the program end with a status where it is to make a core of a kdump."""

    def fail(status: int) -> None:
        program = own_program(f"""
from panicd.dumps.filter import elf_filter

def main(arguments):
    return {status} if elf_filter.KDUMP in arguments else elf_filter.main(arguments)
""")
        monkeypatch.setattr(dump_writer, "ELF_FILTER", program)

    return fail


@real
@pytest.mark.usefixtures("anything_is_nearly_empty")
async def test_the_dump_is_the_same_byte_for_byte(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = CoredumpSettings(socket_dir / "coredumps", min_free=FreeSpaceFloor())
    async with panicked_vm(socket_dir) as (_, session):
        made = {}
        for kind, level in KINDS:
            at_level = replace(settings, level=level)
            dump = partial(dump_guest_memory, session, at_level, "vm", kind=kind)
            finished = await dump(incident=f"{INCIDENT}{kind}{level}")
            assert finished.selection is not None
            assert finished.selection.of_kdump
            if kind is DumpFormat.ELF_ZSTD:
                assert dump_facts(finished.path).level == level
            made[kind, level] = elf_of(finished)
        memory = await check_guest(session)
        assert suits_kdump(session, memory, DumpFormat.ELF, PageSelection(1))
        assert not suits_kdump(session, memory, DumpFormat.ELF, PageSelection(0)), "it has no holes"
        assert not suits_kdump(session, memory, DumpFormat.KDUMP_ZLIB, PageSelection(1))
        monkeypatch.setattr(dump_checks, "NEARLY_EMPTY", 0.0)
        finished = await dump_guest_memory(session, settings, "vm", INCIDENT, DumpFormat.ELF)
        assert finished.selection is not None
        assert not finished.selection.of_kdump
    assert {key for key, core in made.items() if core != elf_of(finished)} == set()


@real
@pytest.mark.usefixtures("anything_is_nearly_empty")
@pytest.mark.parametrize("status", [1, errno.ENODATA])
async def test_a_kdump_that_is_not_understood_costs_no_dump(
    socket_dir: Path, fail_kdumps: Callable[[int], None], status: int
) -> None:
    fail_kdumps(status)
    settings = CoredumpSettings(socket_dir / "coredumps", min_free=FreeSpaceFloor(), level=1)
    async with panicked_vm(socket_dir) as (_, session):
        progress = DumpProgress()
        dump = partial(dump_guest_memory, session, settings, "vm", INCIDENT, DumpFormat.ELF)
        finished = await dump(progress=progress)
    assert finished.selection is not None
    assert not finished.selection.of_kdump
    assert progress.received == finished.size, "what came before does not count"
    assert list((socket_dir / "coredumps").rglob("*.partial")) == []


@real
async def test_the_beginning_of_a_guest_of_many_processors_is_whole(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with panicked_vm(socket_dir) as (_, session):
        reader = RangeReader(session, math.inf, PAGE)
        whole = await reader.beginning()
        monkeypatch.setattr(guest_memory, "BEGINNING", len(whole) - 1)
        assert await reader.beginning() == whole


@pytest.mark.usefixtures("autojump_clock")
async def test_a_beginning_that_nobody_reads_is_not_waited_for_long() -> None:
    reading, writing = os.pipe()
    try:
        os.set_blocking(writing, False)
        with suppress(BlockingIOError):
            while os.write(writing, EMPTY):
                pass
        os.set_blocking(writing, True)
        reader = Ranges(PageGuest(), trio.current_time() + 1, beginning_of([EMPTY] * 4))
        with pytest.raises(NotReadableError, match="the time is over"):
            await send_ends(writing, reader, GuestMemory(MOST, None))
        assert os.get_blocking(writing), "QEMU does not write to another pipe"
    finally:
        os.close(reading)
        os.close(writing)


@real
async def test_a_second_dump_waits_until_qemu_has_freed_the_first(socket_dir: Path) -> None:
    reading, writing = os.pipe()
    async with panicked_vm(socket_dir) as (_, session):
        try:
            await session.qmp.send_fd(writing, "pipe", timeout=10)
            os.close(writing)
            dump = {"paging": False, "protocol": "fd:pipe", "detach": True}
            await session.execute("dump-guest-memory", dump)
            freed: list[bool] = []

            async def ask() -> None:
                freed.append(await is_freed(session))

            async with trio.open_nursery() as nursery:
                with patch.object(nearly_empty, "FREEING", 0.5):  # the pipe is full: it goes on
                    assert not await is_freed(session)
                nursery.start_soon(ask)
                await trio.testing.wait_all_tasks_blocked()
                os.close(reading)
                reading = -1
            assert freed == [True]
        finally:
            if reading >= 0:
                os.close(reading)


@real
@pytest.mark.usefixtures("anything_is_nearly_empty")
async def test_without_a_safe_second_dump_there_is_none(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch, fail_kdumps: Callable[[int], None]
) -> None:
    async def never(_session: Session) -> bool:
        return False

    fail_kdumps(1)
    monkeypatch.setattr(coredump, "is_freed", never)
    settings = CoredumpSettings(socket_dir / "coredumps", min_free=FreeSpaceFloor(), level=1)
    async with panicked_vm(socket_dir) as (_, session):
        with pytest.raises(DumpError, match="unwritable"):
            await dump_guest_memory(session, settings, "vm", INCIDENT, DumpFormat.ELF_ZSTD)


@real
@pytest.mark.usefixtures("anything_is_nearly_empty")
async def test_a_guest_that_was_let_go_meanwhile_is_not_dumped_again(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch, fail_kdumps: Callable[[int], None]
) -> None:
    fail_kdumps(1)
    settings = CoredumpSettings(socket_dir / "coredumps", min_free=FreeSpaceFloor(), level=1)
    async with panicked_vm(socket_dir) as (vm, session):
        looks = 0

        async def look(session: Session) -> GuestMemory:
            nonlocal looks
            looks += 1
            if looks == 2:
                await vm.witness.execute("system_reset")
                await session.observe(lambda: session.vm.times_let_go > 0, 30)
            return await check_guest(session)

        monkeypatch.setattr(coredump, "check_guest", look)
        with pytest.raises(DumpError) as error:
            await dump_guest_memory(session, settings, "vm", INCIDENT, DumpFormat.ELF_ZSTD)
    assert error.value.failure is DumpFailure.OVERTAKEN


@real
@pytest.mark.usefixtures("anything_is_nearly_empty")
async def test_a_guest_that_is_let_go_before_its_kdump_is_not_dumped(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = CoredumpSettings(socket_dir / "coredumps", min_free=FreeSpaceFloor())
    async with panicked_vm(socket_dir) as (vm, session):

        async def send(*arguments: Any) -> None:
            await send_ends(*arguments)
            await vm.witness.execute("system_reset")
            await session.observe(lambda: session.vm.times_let_go > 0, 30)

        monkeypatch.setattr(coredump, "send_ends", send)
        with pytest.raises(DumpError) as error:
            await dump_guest_memory(session, settings, "vm", INCIDENT, DumpFormat.ELF_ZSTD)
    assert error.value.failure is DumpFailure.OVERTAKEN
    assert list((socket_dir / "coredumps").rglob("*.partial")) == []


@real
@pytest.mark.usefixtures("anything_is_nearly_empty")
async def test_a_guest_of_32_bits_comes_page_by_page(socket_dir: Path) -> None:
    settings = CoredumpSettings(socket_dir / "coredumps", min_free=FreeSpaceFloor())
    async with stopped_guest(socket_dir) as session:
        assert suits_kdump(
            session, await check_guest(session), DumpFormat.ELF_ZSTD, PageSelection(0)
        )
        finished = await dump_guest_memory(session, settings, "vm", INCIDENT, DumpFormat.ELF_ZSTD)
    assert finished.selection is not None
    assert not finished.selection.of_kdump
    assert NOISE_OF_32_BITS in elf_of(finished)


@real
async def test_memory_that_others_may_have_written_is_never_taken_for_empty(
    socket_dir: Path,
) -> None:
    image = socket_dir / "memory"
    backend = f"memory-backend-file,id=ram,size=64M,mem-path={image},share=on"
    of_a_file = ("-m", "64M", "-machine", "memory-backend=ram", "-object", backend)
    with fail_after(60):
        async with (
            event_loop(),
            RealQemu.start(socket_dir, paused=True, extra=of_a_file) as vm,
            session_with(vm) as session,
        ):
            assert (await check_guest(session)).touched is None
