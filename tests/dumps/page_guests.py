"""A Linux guest's page structures in a memory of a few MiB, as a kernel lays them out; and lies.

The array lies in one piece, mapped by pages of 2 MiB from ``VMEMMAP`` on, as x86-64 has it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from panicd.rules.guest_memory.memory import PAGE
from panicd.rules.guest_memory.reading import NotReadableError, Reading

T = TypeVar("T")

SIZE = 64
VMEMMAP = 0xFFFFEA0000000000
DIRECT = 0xFFFF888000000000
KERNEL_MAP = 0xFFFFFFFF80000000
MEMORY = 16 << 20
PAGES = MEMORY // PAGE


PGD, TABLES, ROOTS, SECTIONS, ARRAY = 0x1000, 0x2000, 0x10000, 0x20000, 0x200000
ARRAY_SIZE = PAGES * SIZE

LRU, PRIVATE, SWAPCACHE, SWAPBACKED, SLAB = 4, 13, 10, 19, 9
HEAD = 1 << 16
BUDDY, OFFLINE, TABLE = -129, -257, -1025
HUGETLB = 2

NOTE = {
    "OSRELEASE": "6.1.0-test",
    "PAGESIZE": 4096,
    "SYMBOL(swapper_pg_dir)": f"{KERNEL_MAP + PGD:x}",
    "SYMBOL(mem_section)": f"{DIRECT + ROOTS:x}",
    "LENGTH(mem_section)": 2048,
    "SIZE(mem_section)": 16,
    "OFFSET(mem_section.section_mem_map)": 0,
    "NUMBER(SECTION_SIZE_BITS)": 24,
    "SIZE(page)": SIZE,
    "OFFSET(page.flags)": 0,
    "OFFSET(page._refcount)": 52,
    "OFFSET(page.mapping)": 24,
    "OFFSET(page._mapcount)": 48,
    "OFFSET(page.private)": 40,
    "OFFSET(page.compound_dtor)": 16,
    "OFFSET(page.compound_head)": 8,
    "NUMBER(PG_lru)": LRU,
    "NUMBER(PG_private)": PRIVATE,
    "NUMBER(PG_swapcache)": SWAPCACHE,
    "NUMBER(PG_swapbacked)": SWAPBACKED,
    "NUMBER(PG_slab)": SLAB,
    "NUMBER(PG_head_mask)": HEAD,
    "NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)": BUDDY,
    "NUMBER(HUGETLB_PAGE_DTOR)": HUGETLB,
    "NUMBER(PAGE_OFFLINE_MAPCOUNT_VALUE)": OFFLINE,
    "NUMBER(phys_base)": 0,
    "NUMBER(pgtable_l5_enabled)": 0,
    "NUMBER(sme_mask)": 0,
}


@dataclass
class Page:
    """A ``struct page``; by default one that the kernel uses."""

    flags: int = 0
    compound_head: int = 0
    dtor: int = 0
    mapping: int = 0
    private: int = 0
    mapcount: int = -1
    refcount: int = 1

    def packed(self) -> bytes:
        head = self.compound_head or self.dtor << 64
        return struct.pack(
            "<QQB7xQ8xQii8x",
            *(self.flags, head & (1 << 64) - 1, self.dtor, self.mapping, self.private),
            *(self.mapcount, self.refcount),
        )


def tail(head: int, **members: int) -> Page:
    """A further one of several pages."""
    return Page(compound_head=VMEMMAP + head * SIZE + 1, **members)


@dataclass
class PageGuest:
    """A guest. What is changed in it after it was made is a lie.

    Attributes:
        memory: all of it, from 0 on.
        note: the kernel's entries on itself.
    """

    memory: bytearray = field(default_factory=lambda: bytearray(MEMORY))
    note: dict[str, object] = field(default_factory=lambda: dict(NOTE))

    def __post_init__(self) -> None:
        tables = iter(range(TABLES, ROOTS, PAGE))
        self._map(VMEMMAP, ARRAY, ARRAY_SIZE, tables)
        self._map(DIRECT, 0, MEMORY, tables)
        self.put(ROOTS, struct.pack("<Q", DIRECT + SECTIONS))
        self.put(SECTIONS, struct.pack("<Q", VMEMMAP | 0b1111))
        self.put(ARRAY, Page().packed() * PAGES)

    def put(self, place: int, data: bytes) -> None:
        """Write to physical memory."""
        self.memory[place : place + len(data)] = data

    def page(self, number: int, page: Page) -> None:
        """Write what the kernel says of a page."""
        self.put(ARRAY + number * SIZE, page.packed())

    @property
    def vmcoreinfo(self) -> bytes:
        """The note."""
        return "".join(f"{key}={value}\n" for key, value in self.note.items()).encode()

    def serve(self, reader: Reading[T]) -> T:
        """Give a reader what it asks for; return what it read."""
        try:
            request = next(reader)
            while True:
                end = request.physical + request.length
                assert request.physical % PAGE == request.length % PAGE == 0 < request.length
                if end > len(self.memory):
                    request = reader.throw(NotReadableError("no memory there"))
                else:
                    request = reader.send(bytes(self.memory[request.physical : end]))
        except StopIteration as stop:
            result: T = stop.value
            return result

    def _map(self, virtual: int, physical: int, size: int, tables: Iterator[int]) -> None:
        for offset in range(0, size, 2 << 20):
            address, table = virtual + offset, PGD
            for shift in (39, 30):
                place = table + 8 * (address >> shift & 511)
                entry = int.from_bytes(self.memory[place : place + 8], "little")
                if not entry:
                    entry = next(tables) | 0b11
                    self.put(place, struct.pack("<Q", entry))
                table = entry & -PAGE
            large = physical + offset | 0b10000011
            self.put(table + 8 * (address >> 21 & 511), struct.pack("<Q", large))
