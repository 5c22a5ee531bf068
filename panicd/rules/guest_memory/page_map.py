"""The place of a Linux kernel's array of ``struct page``.

Memory is divided into sections (SPARSEMEM), each with a part of the array; ``mem_section`` leads to
them by two levels of tables. The array lies in virtual memory, so the page tables tell where.

The guest wrote all of this. The search leaves out an implausible section, and the filter of a dump
keeps pages that no section describes.

Source: Linux, ``include/linux/mmzone.h`` and ``mm/sparse.c``; VMCOREINFO's ``mem_section`` is the
address of the first table (``VMCOREINFO_SYMBOL_ARRAY``) where SPARSEMEM_EXTREME is used.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from panicd.rules.guest_memory.memory import PAGE, VirtualMemory
from panicd.rules.guest_memory.page_layout import PageLayout
from panicd.rules.guest_memory.reading import NotReadableError, Reading
from panicd.rules.guest_memory.vmcoreinfo import Vmcoreinfo

_POINTER: Final = 8  # bytes
_SECTION_BITS: Final = range(24, 35)  # 16 MiB to 16 GiB; x86-64 and arm64 have 27
_PRESENT: Final = 0b11  # of section_mem_map: SECTION_MARKED_PRESENT, SECTION_HAS_MEM_MAP
_ADDRESS: Final = -PAGE  # the bits of section_mem_map that are an address; the rest are flags
_ROOT_COUNTS: Final = range(1, (1 << 18) + 1)  # x86-64 has 2048, and 2^17 with 5 levels of tables
_MAX_SECTIONS: Final = 1 << 16  # of 8 TiB
_MAX_RUNS: Final = 1 << 18  # x86-64 maps the array by 2 MiB, one a section, where it can
_SPARE_SECTIONS: Final = 64  # which hold less than a whole section of memory


@dataclass(frozen=True, slots=True)
class PageRun:
    """A part of the array that lies in one piece.

    Attributes:
        first: the number of its first page.
        count: the number of its pages.
        physical: its address in guest memory, in bytes.
    """

    first: int
    count: int
    physical: int

    def part(self, first: int, count: int, size: int) -> "PageRun":
        """Return a part of this run; ``size``: an element's size in bytes."""
        return PageRun(first, count, self.physical + (first - self.first) * size)


@dataclass(frozen=True, slots=True)
class PageMap:
    """The array, as far as it was found.

    Attributes:
        layout: an element's layout.
        base: the virtual address that the element of page 0 has, or would have.
        runs: the runs found, in the order of the pages.
    """

    layout: PageLayout
    base: int
    runs: tuple[PageRun, ...]


def check_page_size(info: Vmcoreinfo) -> None:
    """Check that a kernel's pages have the size of the pages that a dump leaves out.

    Raises:
        NotReadableError: they are larger, as an arm64's may be.
    """
    if info.page_size() != PAGE:
        raise NotReadableError(f"its pages have {info.page_size()} bytes, not {PAGE}")


def find_page_map(info: Vmcoreinfo, memory: VirtualMemory, size: int) -> Reading[PageMap]:
    """Find the array of a stopped kernel.

    Args:
        info: the kernel's note.
        memory: its memory.
        size: bytes of physical memory that the guest has: this bounds the array's length.

    Raises:
        NotReadableError: there is no array, or it is implausibly long.
    """
    check_page_size(info)
    layout = PageLayout.read(info)
    sections = _Sections(info, memory)
    pages = sections.pages
    most = min(size // (pages * PAGE), _MAX_SECTIONS) + _SPARE_SECTIONS
    base: int | None = None
    runs: list[PageRun] = []
    found = yield from sections.present(most)
    for number, encoded in found:
        if base is None:
            base = encoded
        if encoded != base:  # x86-64 maps the whole array at one place (SPARSEMEM_VMEMMAP)
            raise NotReadableError("its page structures don't lie in one row")
        runs += yield from _runs(memory, layout.size, base, number * pages, pages)
        if len(runs) > _MAX_RUNS:
            raise NotReadableError("its page structures lie in too many pieces")
    if base is None or not runs:
        raise NotReadableError("no page structures are to be found")
    return PageMap(layout, base, tuple(_joined(runs, layout.size)))


class _Sections:
    """The two levels of tables.

    Attributes:
        pages: in a section.
    """

    def __init__(self, info: Vmcoreinfo, memory: VirtualMemory) -> None:
        bits = info.number("SECTION_SIZE_BITS")
        if bits not in _SECTION_BITS:
            raise NotReadableError(f"sections of 2^{bits} bytes")
        self._section = info.structure("mem_section", {"section_mem_map": _POINTER})
        if self._section.size > PAGE:
            raise NotReadableError(f"a mem_section of {self._section.size} bytes")
        self._root_count = info.length("mem_section")
        if self._root_count not in _ROOT_COUNTS:
            raise NotReadableError(f"a mem_section of {self._root_count} elements")
        self._memory = memory
        self._roots = info.symbol("mem_section")
        self.pages = 1 << bits - 12

    def present(self, most: int) -> Reading[list[tuple[int, int]]]:
        """Return the present sections: number, and where the array would begin by this section."""
        per_root = PAGE // self._section.size
        roots = yield from self._memory.read(self._roots, self._root_count * _POINTER)
        found = []
        for root, (table,) in enumerate(struct.iter_unpack("<Q", roots)):
            if not table:
                continue
            sections = yield from self._memory.read(table, per_root * self._section.size)
            for index in range(per_root):
                place = index * self._section.size
                section = sections[place : place + self._section.size]
                encoded = self._section.unsigned(section, "section_mem_map")
                if encoded & _PRESENT == _PRESENT:
                    found.append((root * per_root + index, encoded & _ADDRESS))
            if len(found) > most:
                raise NotReadableError("it tells of more memory than the guest has")
        return found


def _runs(
    memory: VirtualMemory, size: int, base: int, first: int, count: int
) -> Reading[list[PageRun]]:
    """Find the runs of a section's part of the array, without unmapped parts."""
    runs = []
    page, end = first, first + count
    while page < end:
        address = base + page * size
        try:
            mapped = yield from memory.locate(address & (1 << 64) - 1)
        except NotReadableError:
            # The next that may be mapped: the array is mapped by whole pages.
            page = max(page + 1, -(-((address // PAGE + 1) * PAGE - base) // size))
            continue
        whole = min(len(mapped) // size, end - page)
        if whole == 0:  # it lies across two pages that need not lie side by side
            page += 1
            continue
        runs.append(PageRun(page, whole, mapped.start))
        page += whole
    return runs


def _joined(runs: Sequence[PageRun], size: int) -> Iterator[PageRun]:
    """Yield the runs, adjacent ones joined."""
    last: PageRun | None = None
    for run in runs:
        if last is not None and (
            run.first == last.first + last.count
            and run.physical == last.physical + last.count * size
        ):
            last = PageRun(last.first, last.count + run.count, last.physical)
            continue
        if last is not None:
            yield last
        last = run
    if last is not None:
        yield last
