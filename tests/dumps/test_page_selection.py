"""What is found out of a guest before its dump: by a process that may die, hang or ask too much."""

from __future__ import annotations

import os
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from panicd.dumps import page_selection
from panicd.dumps.page_selection import PageSelection, selected_pages
from panicd.qemu.guest_memory import GuestReader
from panicd.rules.guest_memory.reading import NotReadableError, ReadRequest
from tests.dumps.page_guests import ARRAY, LRU, MEMORY, PAGES, SIZE, Page, PageGuest
from tests.dumps.test_page_filter import core
from tests.parts.patience import fail_after

CACHE = Page(flags=1 << LRU, mapping=0x1000)
NO_BEGINNING = b"none"
SCRIPT = "import signal, struct, sys; out = sys.stdout.buffer; out.write(struct.pack('<QQ', {})); "
SCRIPT += "out.flush(); signal.pause()"


class Ranges(GuestReader):
    """A guest's memory, a range at a time."""

    def __init__(self, guest: PageGuest, deadline: float, beginning: bytes = b"") -> None:
        self.deadline = deadline
        self._guest = guest
        self._beginning = beginning

    async def beginning(self) -> bytes:
        """What was given."""
        if self._beginning == NO_BEGINNING:
            raise NotReadableError("none today")
        return self._beginning

    async def notes(self) -> bytes:
        """The guest's note."""
        if not self._guest.note:
            raise NotReadableError("no VMCOREINFO")
        size = len(self._guest.vmcoreinfo)
        return struct.pack("<III12s", 11, size, 0, b"VMCOREINFO") + self._guest.vmcoreinfo

    @asynccontextmanager
    async def range(self, request: ReadRequest) -> AsyncIterator[list[tuple[int, int, int]]]:
        """A file with the range in two pieces, the second before the first."""
        start, length = request.physical, request.length
        if start + length > len(self._guest.memory):
            raise NotReadableError("no memory there")
        middle = length // 2
        file = os.memfd_create("range")
        try:
            os.pwrite(file, self._guest.memory[start : start + middle], length)
            os.pwrite(file, self._guest.memory[start + middle : start + length], 0)
            yield [(file, length, length + middle), (file, 0, length - middle)]
        finally:
            os.close(file)


async def select(
    guest: PageGuest, *, level: int = 31, timeout: float = 30, beginning: bytes = b""
) -> tuple[PageSelection, bytes]:
    """What is selected, and the bitmap."""
    with fail_after(60):
        reader = Ranges(guest, trio.current_time() + timeout, beginning)
        async with selected_pages(reader, level, MEMORY) as selection:
            if selection.bitmap is None:
                return selection, b""
            return selection, os.pread(selection.bitmap, 1 << 20, 0)


async def test_what_can_be_left_out_is_found() -> None:
    guest = PageGuest()
    guest.page(2048, CACHE)
    selection, bitmap = await select(guest)
    assert (selection.level, selection.reason) == (31, "")
    assert selection.left_out == {"cache": 1, "cache_private": 0, "user": 0, "free": 0}
    assert selection.structures == PAGES * SIZE
    assert [page for page in range(PAGES) if not bitmap[page // 8] >> page % 8 & 1] == [2048]


async def test_only_ranges_with_something_to_keep_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(page_selection, "LONGEST_RANGE", 3 << 20)
    guest = PageGuest()
    for number in range(1024, 2048):
        guest.page(number, CACHE)
    beginning = core((0, bytes(MEMORY)))[:-MEMORY]
    selection, _ = await select(guest, beginning=beginning)
    assert selection.beginning == beginning
    assert [(each.physical >> 20, each.length >> 20) for each in selection.ranges] == [
        *((0, 3), (3, 1)),
        *((8, 3), (11, 3), (14, 2)),
    ]
    assert selection.stream_size == len(beginning) + 5 * 16 + (12 << 20)


async def test_without_a_beginning_all_is_read() -> None:
    guest = PageGuest()
    guest.page(2048, CACHE)
    selection, bitmap = await select(guest, beginning=NO_BEGINNING)
    assert (selection.level, selection.beginning, selection.ranges) == (31, b"", ())
    assert bitmap


@pytest.mark.parametrize("level", [0, 1])
async def test_nothing_is_looked_for_that_is_not_wanted(
    monkeypatch: pytest.MonkeyPatch, level: int
) -> None:
    monkeypatch.setattr(page_selection, "PROGRAM", "no.such.module")
    assert await select(PageGuest(), level=level) == (PageSelection(level), b"")


async def test_a_guest_that_tells_nothing_is_dumped_whole() -> None:
    selection, _ = await select(PageGuest(note={}))
    assert (selection.level, selection.reason) == (1, "no VMCOREINFO")


async def test_a_guest_that_lies_is_dumped_whole() -> None:
    guest = PageGuest()
    guest.page(ARRAY // 4096, CACHE)
    selection, _ = await select(guest, level=30)
    assert (selection.level, selection.left_out) == (0, {})
    assert selection.reason == "its page structures say of themselves that they are of no use"


async def test_structures_in_no_memory_are_nothing_to_go_by() -> None:
    guest = PageGuest()
    guest.memory = guest.memory[: ARRAY + 2048 * SIZE]
    selection, _ = await select(guest)
    assert sum(selection.left_out.values()) == 0


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("pass", "the process that looks for them ended"),
        ("raise SystemExit(3)", "the process that looks for them ended"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "the process that looks"),
        ("import signal; signal.pause()", "the time for it is over"),
        (SCRIPT.format("0, 1 << 40"), "more memory to read than the limit allows"),
        (SCRIPT.format("1 << 60, 4096"), "the time for it is over"),
        ("print('x' * 200000, flush=True)", "more memory to read than the limit allows"),
    ],
)
async def test_a_process_that_goes_wrong_leaves_a_whole_dump(
    own_program: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, program: str, reason: str
) -> None:
    monkeypatch.setattr(page_selection, "PROGRAM", own_program(program))
    selection, _ = await select(PageGuest(), timeout=2)
    assert selection.level == 1
    assert reason in selection.reason


async def test_no_process_at_all_leaves_a_whole_dump(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    selection, _ = await select(PageGuest())
    assert selection.level == 1
    assert "No such file" in selection.reason


async def test_no_thread_to_start_it_leaves_a_whole_dump(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_arguments: object, **_keywords: object) -> None:
        await trio.lowlevel.checkpoint()
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(trio.lowlevel, "open_process", refuse)
    selection, _ = await select(PageGuest())
    assert selection.level == 1
    assert "no thread is left" in selection.reason
